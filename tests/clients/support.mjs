// Examples as processes, and clients that wait for events instead of sleeping.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import { createServer as createHttp } from 'node:http';
import { connect, createServer } from 'node:net';
import { after } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { chromium } from 'playwright-core';
import { WebSocket, WebSocketServer } from 'ws';

const { CHROMIUM } = process.env;
export const PATIENCE = 30_000;
export const skip = !CHROMIUM && 'there is no Chromium: set CHROMIUM';

export function browse() {
  /** Nothing of the browser's own is fetched or kept. */
  const args = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-sync',
    '--disable-background-networking', '--disable-component-update'];
  return chromium.launch({ executablePath: CHROMIUM, args });
}

/** Everything that a test file has begun, ended with it. */
const begun = [];
after(() => Promise.all(begun.map(end => end())));

const built = fileURLToPath(new URL('../../target/debug/examples/', import.meta.url));

export async function freePort() {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address();
  server.close();
  return port;
}

/** A program that listens on a port: ended with the test file, or restarted by it. */
export class Program {
  constructor(port, command, args, env) {
    Object.assign(this, { port, command, args, env });
    begun.push(() => this.end('SIGKILL'));
  }

  static async example(name, env = {}, port = undefined, args = []) {
    port ??= await freePort();
    const program = new Program(port, built + name, args, { PORT: port, ...env });
    await program.start();
    return program;
  }

  static async redis() {
    const port = await freePort();
    const args = ['--port', port, '--bind', '127.0.0.1', '--save', '', '--appendonly', 'no'];
    const program = new Program(port, 'redis-server', args, {});
    await program.start();
    return program;
  }

  get url() { return `ws://127.0.0.1:${this.port}/ws`; }
  get page() { return `http://127.0.0.1:${this.port}/`; }
  get redisUrl() { return `redis://127.0.0.1:${this.port}`; }

  async start() {
    const env = { ...process.env, ...this.env };
    this.child = spawn(this.command, this.args, { env, stdio: ['ignore', 'ignore', 'inherit'] });
    this.ended = once(this.child, 'exit');
    let refused = true;
    while (refused) {
      if (this.child.exitCode !== null) throw new Error(`${this.command} ended by itself`);
      const stream = connect(this.port, '127.0.0.1');
      refused = await once(stream, 'connect').then(() => false, () => sleep(20, true));
      stream.destroy();
    }
  }

  async end(signal = 'SIGINT') {
    this.child.kill(signal);
    await this.ended;
  }
}

/** A `ws` client whose messages can be awaited one after another. */
export class Client {
  static async open(url, protocols = [], options = {}) {
    const client = new Client(url, protocols, options);
    await once(client.socket, 'open');
    return client;
  }

  constructor(url, protocols, options) {
    this.socket = new WebSocket(url, protocols, options);
    this.heard = [];
    this.socket.on('message', (data, binary) => {
      this.heard.push(binary ? data : data.toString());
      this.socket.emit('heard');
    });
    this.closed = once(this.socket, 'close').then(([code, reason]) => [code, reason.toString()]);
    begun.push(() => this.socket.terminate());
  }

  async next() {
    while (!this.heard.length) await once(this.socket, 'heard');
    return this.heard.shift();
  }

  /** The first message that fits; what came before is forgotten. */
  async find(fits) {
    for (;;) {
      const message = JSON.parse(await this.next());
      if (fits(message)) return message;
    }
  }

  say(message) {
    this.socket.send(JSON.stringify(message));
  }
}

/** The status and body that refused a handshake. */
export async function refusal(url, options) {
  const socket = new WebSocket(url, options);
  const [, response] = await once(socket, 'unexpected-response');
  const body = await new Response(response).text();
  socket.on('error', () => {}).terminate();
  return [response.statusCode, body];
}

const client = new URL('../../examples/client/cluster.js', import.meta.url);

/** What has happened, to be awaited one after another. */
export class Queue {
  constructor() {
    this.kept = [];
    this.waiting = [];
  }

  push(value) {
    const waits = this.waiting.shift();
    if (waits) waits(value);
    else this.kept.push(value);
  }

  async next() {
    return this.kept.length ? this.kept.shift() : new Promise(resolve => this.waiting.push(resolve));
  }
}

/** A server that does as a test tells it: WebSockets on /ws, server-sent events on /events, and a page with the module. */
export class Scripted {
  /** `speaks` is what is answered to the protocols that a client offers; an upgrade gets the status `refuses`, if any. */
  static async start({ speaks = () => false, refuses = 0, events = 200 } = {}) {
    const scripted = Object.assign(new Scripted(), { speaks, refuses, events, dialed: 0, asked: 0 });
    await scripted.start();
    begun.push(() => scripted.end());
    return scripted;
  }

  constructor() {
    this.sockets = new Queue();
    this.streams = new Queue();
  }

  async start() {
    this.http = createHttp((request, answer) => this.answer(request, answer));
    const accepts = new WebSocketServer({ noServer: true, handleProtocols: (...offered) => this.speaks(...offered) });
    this.http.on('upgrade', (request, stream, head) => {
      this.dialed++;
      if (this.refuses) return stream.end(`HTTP/1.1 ${this.refuses} No\r\nContent-Length: 0\r\n\r\n`);
      accepts.handleUpgrade(request, stream, head, socket => {
        socket.heard = new Queue();
        socket.on('message', (data, binary) => socket.heard.push(binary ? data : data.toString()));
        socket.closed = once(socket, 'close').then(([code, reason]) => [code, reason.toString()]);
        socket.offered = request.headers['sec-websocket-protocol']?.split(',').map(name => name.trim()) ?? [];
        socket.since = since(request);
        this.sockets.push(socket);
      });
    });
    await once(this.http.listen(this.port ?? 0, '127.0.0.1'), 'listening');
    ({ port: this.port } = this.http.address());
  }

  get url() { return `ws://127.0.0.1:${this.port}/ws`; }
  get page() { return `http://127.0.0.1:${this.port}/`; }

  async answer(request, answer) {
    if (request.url === '/cluster.js') {
      answer.writeHead(200, { 'content-type': 'text/javascript' }).end(await readFile(client));
    } else if (request.url.startsWith('/events')) {
      this.asked++;
      answer.writeHead(this.events, { 'content-type': 'text/event-stream' });
      if (this.events !== 200) return answer.end();
      answer.flushHeaders();
      answer.since = since(request);
      answer.event = (id, data, name) => answer.write(`${name ? `event: ${name}\n` : ''}id: ${id}\ndata: ${data}\n\n`);
      this.streams.push(answer);
    } else answer.writeHead(200, { 'content-type': 'text/html' }).end('<!doctype html><link rel="icon" href="data:,">');
  }

  end() {
    this.http.closeAllConnections();
    this.http.close();
  }
}

const since = request => new URL(request.url, 'http://node').searchParams.get('since');

/** One address for several nodes, as of a load balancer: whoever comes gets the first of them that is there. */
export class Balancer {
  static async start(nodes) {
    const server = createServer(stream => {
      stream.on('error', () => {});
      dial(stream, nodes);
    });
    begun.push(() => server.close());
    await once(server.listen(0, '127.0.0.1'), 'listening');
    const { port } = server.address();
    return { port, page: `http://127.0.0.1:${port}/`, url: `ws://127.0.0.1:${port}/ws` };
  }
}

function dial(stream, [node, ...others]) {
  if (!node) return stream.destroy();
  const upstream = connect(node.port, '127.0.0.1', () => {
    upstream.off('error', next).on('error', () => stream.destroy());
    stream.pipe(upstream).pipe(stream);
    upstream.on('close', () => stream.destroy());
    stream.on('close', () => upstream.destroy());
  });
  const next = () => dial(stream, others);
  upstream.on('error', next);
}

/** A way to a node on which the bytes that it says are counted. */
export class Counted {
  static async start(node) {
    const counted = Object.assign(new Counted(), { bytes: 0 });
    const server = createServer(stream => {
      const upstream = connect(node.port, '127.0.0.1');
      upstream.on('data', data => { counted.bytes += data.length; });
      upstream.on('error', () => stream.destroy());
      stream.on('error', () => upstream.destroy());
      stream.pipe(upstream).pipe(stream);
    });
    begun.push(() => server.close());
    await once(server.listen(0, '127.0.0.1'), 'listening');
    const { port } = server.address();
    return Object.assign(counted, { page: `http://127.0.0.1:${port}/`, url: `ws://127.0.0.1:${port}/ws` });
  }
}
