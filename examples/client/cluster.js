// A WebSocket that comes back, and goes on where it was: for pages of axum-cluster, without dependencies.
// Copy this file and cluster.d.ts, which says what everything means; docs/guide/front-end.md says why.

/** What a socket comes back from by itself. After any other code a person, or the app, has to do something. */
const BACK = [1001, 1006, 1011, 1012, 1013, 1014], LOGIN = [4001, 4401, 4403];
const RESUME = 'resume.v1', MARK = '\u0001';
/** Bytes that may wait in the browser before `send` refuses more. */
const QUEUED = 1 << 20;
/** WebSockets that never opened, before server-sent events are tried. */
const REFUSALS = 3;

export function connect(url, {
  onmessage, onopen, onclose, onstatus, onmissed, protocols = [], since = '', events,
  first = 1_000, bound = 15_000, held = 5_000, opening = 20_000,
  WebSocket = globalThis.WebSocket, EventSource = globalThis.EventSource,
}) {
  let link, status, timer, began, ever, speaks, position = since, tries = 0, refused = 0;

  const tell = (next, about = {}) => {
    status = next;
    onstatus?.(next, about);
  };

  const seen = () => document.hidden || open();
  const hurried = verb => {
    globalThis[verb]?.('online', open);
    globalThis.document?.[verb]('visibilitychange', seen);
  };

  const leave = (code, reason) => {
    const left = link;
    link = {}; // what it says from now on is nobody's
    clearTimeout(timer);
    hurried('removeEventListener');
    left?.close?.(code, reason);
  };

  const open = () => {
    leave();
    began = 0;
    const mine = link = events && EventSource && (!WebSocket || refused >= REFUSALS) ? listen() : dial();
    timer = setTimeout(() => end(mine), opening);
    tell('connecting');
  };

  const address = to => {
    const at = new URL(to, globalThis.location?.href);
    if (position) at.search += `${at.search && '&'}since=${encodeURIComponent(position)}`;
    return at;
  };

  const dial = () => {
    const at = address(url);
    at.protocol = at.protocol.replace('http', 'ws');
    // Browsers fail a handshake of whose protocols the server speaks none. So each second try is without, and each
    // eighth where it once spoke it: an older version may be back.
    const offered = (onmissed || since) && (tries + 1) % (speaks ? 8 : 2) ? [RESUME] : [];
    const socket = new WebSocket(at, offered.concat(typeof protocols === 'function' ? protocols() : protocols));
    let mark;
    socket.binaryType = 'arraybuffer';
    socket.onopen = () => opened(socket, socket.protocol === RESUME);
    socket.onmessage = ({ data }) => {
      if (typeof data !== 'string') data = new Uint8Array(data);
      else if (data[0] === MARK && socket.protocol === RESUME) {
        data = data.slice(1);
        const [reason, token] = data.slice(2).split(' ');
        if (data[0] === '=') return take(socket, data.slice(1));
        if (data[0] === '!') return take(socket, token, onmissed, reason);
        if (data[0] !== MARK) return mark = /^\d+$/.exec(data);
      }
      const token = mark && position && `${position.split('~')[0]}~${mark}`;
      mark = 0; // of this message alone, whether or not the app can take it
      take(socket, token, onmessage, data);
    };
    socket.onclose = ({ code, reason }) => end(socket, code, reason);
    // Of a handshake that failed, Node.js says no more than this.
    socket.onerror = () => began || end(socket);
    return socket;
  };

  const listen = () => {
    const source = new EventSource(address(events), { withCredentials: true });
    let empty; // the server's first event, for its id
    const on = (name, to, read = data => data) => source.addEventListener(name, ({ data, lastEventId }) => {
      const nothing = empty && !data && name === 'message';
      empty = false;
      take(source, lastEventId, nothing ? undefined : to, read(data));
    });
    on('message', onmessage);
    on('binary', onmessage, data => Uint8Array.from(atob(data), byte => byte.charCodeAt()));
    on('missed', onmissed);
    source.onopen = () => opened(source, empty = true);
    // It would come back by itself, but in one moment with all others, and never after a 503.
    source.onerror = () => end(source);
    return source;
  };

  const opened = (mine, resumes) => {
    if (link !== mine) return;
    clearTimeout(timer);
    const hole = (ever || position) && !(resumes && position);
    if (resumes) speaks = true;
    else position = '';
    if (mine.send) refused = -Infinity;
    ever = true;
    began = performance.now();
    tell('open');
    onopen?.();
    if (hole) onmissed?.('unresumed');
  };

  const take = (mine, token, to, what) => {
    if (link !== mine) return;
    to?.(what);
    position = token || position; // only now: the app has it
  };

  const end = async (mine, code = 1006, reason = '') => {
    if (link !== mine) return;
    if (!mine.send) refused = REFUSALS - 1; // a WebSocket has its turn again
    else if (!began) refused++;
    if (began && performance.now() - began >= held) tries = 0;
    leave();
    const ended = link;
    status = 'waiting';
    let back = BACK.includes(code);
    try {
      back = await onclose?.(code, reason) ?? back;
    } finally {
      if (link === ended) {
        if (back) {
          const pause = Math.random() * Math.min(bound, first * 2 ** tries++);
          timer = setTimeout(open, pause);
          hurried('addEventListener');
          tell('waiting', { code, reason, pause });
        } else tell(LOGIN.includes(code) ? 'login' : 'stopped', { code, reason });
      }
    }
  };

  open();
  return {
    get status() { return status; },
    get position() { return position; },
    send(data) {
      if (!link.send || link.readyState !== 1 || link.bufferedAmount > QUEUED) return false;
      link.send(data);
      return true;
    },
    reconnect() { if (!link.close) open(); },
    close(code = 1000, reason = '') {
      leave(code, reason);
      tell('stopped', { code, reason });
    },
  };
}
