// Shows below a node why its check rejected its values, until the values change. The editor itself only outlines the node
// in red and shows the reason, if at all, in a dialog or a panel.
import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"

const LINE = 16
const reasons = new WeakMap()

const valuesOf = (node) => JSON.stringify(node.widgets?.map((widget) => widget.value))

// The id of a node inside a subgraph is the path of ids to it, such as "12:3".
function findNode(path) {
  let graph = app.rootGraph ?? app.graph
  let node
  for (const id of String(path).split(":")) {
    node = graph?.getNodeById(isNaN(id) ? id : Number(id))
    graph = node?.subgraph
  }
  return node
}

function storeReasons(rejected) {
  for (const [path, { errors = [] }] of Object.entries(rejected ?? {})) {
    // ComfyUI prefixes the message with the input's name and repeats it for every input that the check reads.
    const messages = errors
      .filter((error) => error.type === "custom_validation_failed")
      .map((error) => error.details.split(`${error.extra_info?.input_name} - `).slice(1).join(""))
    const text = [...new Set(messages.filter(Boolean))].join(" ")
    const node = findNode(path)
    if (node && text) reasons.set(node, { text, values: valuesOf(node) })
  }
  app.canvas?.setDirty(true, true)
}

function wrapText(context, text, width) {
  const rows = [""]
  for (const word of text.split(/\s+/)) {
    const longer = `${rows.at(-1)} ${word}`.trim()
    if (context.measureText(longer).width <= width) rows[rows.length - 1] = longer
    else rows.push(word)
  }
  return rows.filter(Boolean)
}

function drawReason(node, context) {
  const reason = reasons.get(node)
  if (!reason || node.flags.collapsed || reason.values !== valuesOf(node)) return
  context.save()
  context.font = `12px ${LiteGraph.NODE_FONT ?? "Arial"}`
  context.textAlign = "left"
  const rows = wrapText(context, reason.text, node.size[0] - 16)
  context.fillStyle = "#5a1a1a"
  context.fillRect(0, node.size[1] + 4, node.size[0], rows.length * LINE + 10)
  context.fillStyle = "#ffdcdc"
  rows.forEach((line, number) => context.fillText(line, 8, node.size[1] + 20 + number * LINE))
  context.restore()
}

app.registerExtension({
  name: "uniworld.rejections",
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!nodeData.name.startsWith("UniWorld")) return
    const before = nodeType.prototype.onDrawForeground
    nodeType.prototype.onDrawForeground = function (context, ...more) {
      const result = before?.call(this, context, ...more)
      drawReason(this, context)
      return result
    }
  },
  setup() {
    const queue = api.queuePrompt
    api.queuePrompt = async function (...args) {
      try {
        const answer = await queue.apply(this, args)
        storeReasons(answer?.node_errors)
        return answer
      } catch (error) {
        storeReasons(error?.response?.node_errors)
        throw error
      }
    }
  },
})
