/* Search without a server: from a disk browsers start no worker, so a hidden frame does its work. */
if (location.protocol === "file:") {
  window.IFrameWorker = window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      document.body.append(this.frame);
      const inside = this.frame.contentWindow;
      window.addEventListener("message", (event) => {
        if (event.source === inside) {
          const copy = new MessageEvent("message", { data: event.data });
          this.dispatchEvent(copy);
          if (this.onmessage) this.onmessage(copy);
        }
      });
      this.ready = new Promise((done) => {
        this.frame.addEventListener("load", done);
        inside.document.open();
        inside.document.write(
          '<script>postMessage = parent.postMessage.bind(parent);' +
          "importScripts = (...urls) => urls.reduce((chain, url) => chain.then(() => new Promise((done, fail) => {" +
          'const script = document.createElement("script"); script.src = url; script.onload = done;' +
          "script.onerror = fail; document.body.append(script); })), Promise.resolve());</" + "script>" +
          `<body><script src="${url}"></` + "script></body>");
        inside.document.close();
      });
    }
    postMessage(data) {
      this.ready.then(() => this.frame.contentWindow.dispatchEvent(
        new MessageEvent("message", { data, source: window })));
    }
    terminate() {
      this.frame.remove();
    }
  };
}
