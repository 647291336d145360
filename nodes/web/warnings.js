// What nodes warn of, in full and for as long as it takes to read: the text on the node is short of room, and newer editors
// remove it when the run ends.
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
