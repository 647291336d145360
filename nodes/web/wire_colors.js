// Colours for the wires that only this pack has. Without an entry the editor draws every custom type in the same grey.
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

// Loading a palette writes an empty colour for each type that the palette does not name; a palette that does name one of
// ours wins. An accessor holds whatever the order in which palettes and extensions load.
function keep(table, type, color) {
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
      keep(app.canvas.default_connection_color_byType, type, color)
      keep(app.canvas.constructor.link_type_colors, type, color)
      return `--color-datatype-${type}: ${color};`
    })
    // What editors read that draw nodes as HTML.
    const style = document.createElement("style")
    style.textContent = `:root { ${rules.join(" ")} }`
    document.head.append(style)
    app.canvas.setDirty(true, true)
  },
})
