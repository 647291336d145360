// Colors for the types that only this pack has. Without an entry, the editor draws all custom types in the same gray.
import { app } from "../../scripts/app.js"

const COLORS = {
  UNIWORLD_VLM: "#4DD0E1",
  UNIWORLD_SIGLIP: "#80CBC4",
  UNIWORLD_DIT: "#9575CD",
  UNIWORLD_VAE: "#E57373",
  UNIWORLD_TEXT: "#FFB300",
  UNIWORLD_REFERENCE: "#F06292",
  UNIWORLD_CONVERSATION: "#AED581",
}

// Loading a palette writes an empty color for each type that it does not name; a palette that names one of ours takes
// precedence. An accessor works for any order in which palettes and extensions load.
function defineColor(table, type, color) {
  let chosen = ""
  Object.defineProperty(table, type, {
    configurable: true,
    enumerable: true,
    get: () => chosen || color,
    set: (value) => (chosen = value),
  })
}

app.registerExtension({
  name: "uniworld.wireColors",
  setup() {
    const rules = Object.entries(COLORS).map(([type, color]) => {
      defineColor(app.canvas.default_connection_color_byType, type, color)
      defineColor(app.canvas.constructor.link_type_colors, type, color)
      return `--color-datatype-${type}: ${color};`
    })
    // Editors that draw nodes as HTML read these variables.
    const style = document.createElement("style")
    style.textContent = `:root { ${rules.join(" ")} }`
    document.head.append(style)
    app.canvas.setDirty(true, true)
  },
})
