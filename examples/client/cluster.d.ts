/** Where a connection stands. */
export type Status =
  /** A socket is being opened. */
  | 'connecting'
  /** It is there. That the server lets this user in is proven by its first message alone. */
  | 'open'
  /** It ended, and comes back: after a pause, or at once when the browser is `online` or the page is seen again. */
  | 'waiting'
  /** It ended for want of an identity (4001, 4401, 4403), and does not come back: log in, then `reconnect()`. */
  | 'login'
  /** It ended, and does not come back: by `close()`, or since the same again would end the same. */
  | 'stopped';

/** Why a connection waits, or has stopped. */
export interface About {
  /** The close code; 1006 where there was none, and for server-sent events. */
  code?: number;
  reason?: string;
  /** Milliseconds until the next try, while it waits. */
  pause?: number;
}

export interface Options {
  /**
   * A message: text as a string, binary as bytes. The position moves on when this returns, so a message for which it threw
   * comes again if the connection ends before the next one. Whatever it does later, in a promise, is not waited for.
   */
  onmessage(data: string | Uint8Array): void;
  /** A socket is open, the first one or one that came back: say here what the server has to be told each time. */
  onopen?(): void;
  /**
   * A socket ended. What it returns, or its promise resolves to, decides whether to come back: `true` (after a new token
   * was fetched, say) or `false`; by the code when it is `undefined`. Not called for your own `close()`.
   */
  onclose?(code: number, reason: string): boolean | void | Promise<boolean | void>;
  onstatus?(status: Status, about: About): void;
  /**
   * Something may have been missed: read it from where your app keeps it. `reason` is the server's, or `unresumed`: the
   * server did not take this client up where it was, since it keeps no history. **With it the client asks the server to
   * resume**; without it a client starts anew each time, and is not told.
   */
  onmissed?(reason: string): void;
  /** Subprotocols, as of `WebSocket`; a function is asked before each try, for a token that changes. It must not throw. */
  protocols?: string | string[] | (() => string | string[]);
  /** The position to begin from, as the server gave it with a page or as `position` was. Default: from now on. */
  since?: string;
  /** The URL of server-sent events, for networks that let no WebSocket through. Default: none. `send` does not work there. */
  events?: string | URL;
  /** The bound of the first pause, in milliseconds; it doubles with each try. Each pause is random below it. Default: 1,000. */
  first?: number;
  /** The bound of all pauses, in milliseconds. Default: 15,000. */
  bound?: number;
  /** How long a socket has to hold until the pauses begin anew, in milliseconds. Default: 5,000. */
  held?: number;
  /** How long one try may take, in milliseconds. Default: 20,000. */
  opening?: number;
  /** Instead of the global ones: for tests, and where there are none. */
  WebSocket?: unknown;
  EventSource?: unknown;
}

export interface Connection {
  readonly status: Status;
  /** Where this client is: for `since`, or for a page that asks for what came after. Empty where the server keeps no history. */
  readonly position: string;
  /**
   * Hands a message to the browser; `true` does not say that it arrived. `false`: it was not sent, since no WebSocket is
   * open or more than 1 MiB waits to be written. Nothing is kept here for later.
   */
  send(data: string | ArrayBufferLike | ArrayBufferView | Blob): boolean;
  /** Tries at once, where it waits or has stopped; from where it was. */
  reconnect(): void;
  /** Ends it. No callback is called for what comes after, but `onstatus` with `stopped`. Default: 1000, the purpose is fulfilled. */
  close(code?: number, reason?: string): void;
}

/**
 * Opens a WebSocket that comes back by itself. `url` may be relative, and of http.
 *
 * Throws what `new WebSocket` throws: for a URL or a subprotocol that is none.
 */
export function connect(url: string | URL, options: Options): Connection;
