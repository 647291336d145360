// Why a node's own check rejected its values, written below the node until they change: the editor frames the node in red
// and has the reason in a dialog or a panel at most.
import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"

const LINE = 16
const reasons = new WeakMap()

const valuesOf = (node) => JSON.stringify(node.widgets?.map((widget) => widget.value))

// A node inside a subgraph is named by the ids on the way to it.
function find(path) {
  let graph = app.rootGraph ?? app.graph
  let node
  for (const id of String(path).split(":")) {
    node = graph?.getNodeById(isNaN(id) ? id : Number(id))
    graph = node?.subgraph
  }
  return node
}

function keep(rejected) {
  for (const [path, { errors = [] }] of Object.entries(rejected ?? {})) {
    // ComfyUI puts an input's name before what the check said, and says it again for every input that the check reads.
    const said = errors
      .filter((error) => error.type === "custom_validation_failed")
      .map((error) => error.details.split(`${error.extra_info?.input_name} - `).slice(1).join(""))
    const text = [...new Set(said.filter(Boolean))].join(" ")
    const node = find(path)
    if (node && text) reasons.set(node, { text, values: valuesOf(node) })
  }
  app.canvas?.setDirty(true, true)
}

function lines(context, text, width) {
  const made = [""]
  for (const word of text.split(/\s+/)) {
    const longer = `${made.at(-1)} ${word}`.trim()
    if (context.measureText(longer).width <= width) made[made.length - 1] = longer
    else made.push(word)
  }
  return made.filter(Boolean)
}

function draw(node, context) {
  const reason = reasons.get(node)
  if (!reason || node.flags.collapsed || reason.values !== valuesOf(node)) return
  context.save()
  context.font = `12px ${LiteGraph.NODE_FONT ?? "Arial"}`
  context.textAlign = "left"
  const written = lines(context, reason.text, node.size[0] - 16)
  context.fillStyle = "#5a1a1a"
  context.fillRect(0, node.size[1] + 4, node.size[0], written.length * LINE + 10)
  context.fillStyle = "#ffdcdc"
  written.forEach((line, number) => context.fillText(line, 8, node.size[1] + 20 + number * LINE))
  context.restore()
}

app.registerExtension({
  name: "uniworld.rejections",
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!nodeData.name.startsWith("UniWorld")) return
    const before = nodeType.prototype.onDrawForeground
    nodeType.prototype.onDrawForeground = function (context, ...more) {
      const result = before?.call(this, context, ...more)
      draw(this, context)
      return result
    }
  },
  setup() {
    const queue = api.queuePrompt
    api.queuePrompt = async function (...given) {
      try {
        const answer = await queue.apply(this, given)
        keep(answer?.node_errors)
        return answer
      } catch (error) {
        keep(error?.response?.node_errors)
        throw error
      }
    }
  },
})
