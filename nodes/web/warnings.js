// Shows warnings of nodes as toasts, in full and long enough to read. The text on the node has little room, and newer
// editors remove it when the run finishes.
import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"

const READING_MS = 30000

app.registerExtension({
  name: "uniworld.warnings",
  setup() {
    api.addEventListener("uniworld.warning", ({ detail }) => {
      const node = app.graph?.getNodeById?.(detail.node)
      const summary = node?.title ?? "UniWorld"
      app.extensionManager.toast.add({ severity: "warn", summary, detail: detail.message, life: READING_MS })
    })
  },
})
