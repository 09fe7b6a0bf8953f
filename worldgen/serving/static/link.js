// The socket: reconnects with growing pauses, and says in words how it stands.

const PAUSES = [0.3, 0.7, 1.5, 3, 5, 8];
export const Closed = Object.freeze({ FLOOD: 1008, FAILURE: 1011, IDLE: 4001, FULL: 4003 });

export class Link {
  /**
   * @param {{notice: Function, binary: Function, state: Function}} on
   *   `notice(object)` for JSON, `binary(buffer)` for pictures, `state(name, seconds, text)` with
   *   name one of connecting, open, waiting, idle, full, failed.
   */
  constructor(on) {
    this.on = on;
    this.attempt = 0;
    this.timer = 0;
    addEventListener("online", () => this.connect());
  }

  connect() {
    clearTimeout(this.timer);
    if (this.socket && this.socket.readyState <= WebSocket.OPEN) return;
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    const socket = new WebSocket(`${scheme}://${location.host}/play`);
    socket.binaryType = "arraybuffer";
    this.socket = socket;
    this.refusal = "";
    this.on.state("connecting");
    socket.onmessage = ({ data }) => {
      if (typeof data !== "string") {
        this.on.binary(data);
        return;
      }
      const notice = JSON.parse(data);
      if (notice.say === "hello") {
        this.attempt = 0;
        this.on.state("open");
      }
      if (notice.say === "refused") this.refusal = notice.message;
      else this.on.notice(notice);
    };
    socket.onclose = (event) => {
      if (socket === this.socket) this.closed(event);
    };
  }

  closed({ code, reason }) {
    if (code === Closed.IDLE) {
      this.on.state("idle");
      return;
    }
    const pause = PAUSES[Math.min(this.attempt, PAUSES.length - 1)];
    this.attempt += 1;
    const name = { [Closed.FULL]: "full", [Closed.FAILURE]: "failed" }[code] ?? "waiting";
    const seconds = name === "waiting" ? pause : Math.max(3, pause);
    this.on.state(name, seconds, this.refusal || reason);
    this.timer = setTimeout(() => this.connect(), 1000 * seconds);
  }

  get open() {
    return this.socket?.readyState === WebSocket.OPEN;
  }

  send(message) {
    if (this.open) this.socket.send(message);
  }

  /** Send a command with its fields. */
  command(name, fields = {}) {
    this.send(JSON.stringify({ do: name, ...fields }));
  }
}
