/* Search in pages that were opened from the disk: a browser allows no Worker there, so a hidden frame takes its place. The
   theme's own search script looks for the name `IFrameWorker` and is told here what it needs of one. */
if (location.protocol === "file:") {
  class IFrameWorker extends EventTarget {
    constructor(url) {
      super()
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      document.body.appendChild(this.frame)
      this.ready = new Promise(resolve => this.frame.addEventListener("load", resolve))
      const inside = this.frame.contentWindow
      inside.document.open()
      inside.document.write(`<body><script>
        postMessage = message => parent.postMessage({ search: message }, "*")
        importScripts = (...sources) => sources.reduce((before, source) => before.then(() => new Promise(resolve => {
          const script = document.createElement("script")
          script.src = source
          script.onload = resolve
          document.body.appendChild(script)
        })), Promise.resolve())
      </` + `script><script src="${url}"></` + `script></body>`)
      inside.document.close()
      addEventListener("message", event => {
        if (event.source !== inside || !event.data || !("search" in event.data)) return
        const answer = new MessageEvent("message", { data: event.data.search })
        this.dispatchEvent(answer)
        if (this.onmessage) this.onmessage(answer)
      })
    }

    postMessage(message) {
      this.ready.then(() => {
        this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data: message }))
      })
    }

    terminate() {
      this.frame.remove()
    }
  }
  window.IFrameWorker = window.Worker = IFrameWorker
}
