// The module of the guide, with `ws` and with Node's own WebSocket, against servers that do as they are told.

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { after, suite, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import { EventSource } from 'eventsource';
import { minify } from 'terser';
import { WebSocket as Ws } from 'ws';
import { connect } from '../../examples/client/cluster.js';
import { freePort, Program, Queue, Scripted } from './support.mjs';

const timeout = 60_000;
const here = new URL('.', import.meta.url);
const RESUME = offered => offered.has('resume.v1') && 'resume.v1';
const control = text => `\u0001${text}`;

const pages = [];
after(() => pages.forEach(page => page.connection.close()));

/** A page: what its module told it can be awaited. */
class Page {
  constructor(url, options) {
    this.heard = new Queue();
    this.statuses = new Queue();
    pages.push(this);
    this.connection = connect(url, {
      first: 1,
      onmessage: data => this.heard.push(data),
      onstatus: (status, about) => this.statuses.push([status, about]),
      ...options,
    });
  }

  async until(wanted) {
    for (;;) {
      const [status, about] = await this.statuses.next();
      if (status === wanted) return about;
    }
  }
}

suite('the file', { timeout }, () => {
  test('minified it has at most 2,500 bytes, and imports nothing', async () => {
    const source = await readFile(new URL('../../examples/client/cluster.js', here), 'utf8');
    assert.doesNotMatch(source, /\bimport\b/);
    const { code } = await minify(source, { module: true });
    assert.ok(code.length <= 2500, `${code.length} bytes`);
  });

  test('its types are what an app in TypeScript expects', async () => {
    const flags = ['--noEmit', '--strict', '--target', 'es2022', '--module', 'nodenext', '--lib', 'es2022,dom'];
    const tsc = new URL('node_modules/typescript/bin/tsc', here).pathname;
    const run = promisify(execFile)(process.execPath, [tsc, ...flags, 'consumer.ts'], { cwd: here });
    await run.catch(({ stdout }) => assert.fail(stdout));
  });
});

/** What the guide says to do after each code. */
async function table() {
  const guide = await readFile(new URL('../../docs/guide/front-end.md', here), 'utf8');
  const rows = guide.matchAll(/^\| (\d{4}(?:, \d{4})*) \| .* \| (.*) \|$/gm);
  return [...rows].flatMap(([, codes, action]) => codes.split(', ').map(code => [Number(code), action]));
}

const endings = { 1005: socket => socket.close(), 1006: socket => socket.terminate() };

for (const [name, WebSocket] of [['ws', Ws], ['Node’s own', globalThis.WebSocket]]) {
  const skip = !WebSocket && 'it has none: Node.js 22, or --experimental-websocket';
  suite(`the module, with ${name}`, { timeout, skip }, () => {
    const open = async (scripted, options) => {
      const page = new Page(scripted.url, { WebSocket, ...options });
      const server = await scripted.sockets.next();
      await page.until('open');
      return [page, server];
    };

    test('it comes back, stops or wants a login after each code as the guide says', async () => {
      const scripted = await Scripted.start();
      const codes = await table();
      assert.ok(codes.length > 15, 'control');
      for (const [code, action] of codes) {
        const [page, server] = await open(scripted);
        (endings[code] ?? (() => server.close(code, 'a reason')))(server);
        // Of several words the last: what to do without a new token.
        const status = action.endsWith('**log in again**') ? 'login' : /^\*\*come back/.test(action) ? 'waiting' : 'stopped';
        const about = await page.until(status);
        assert.equal(about.code, code);
        assert.equal(page.connection.status, status);
        if (status === 'waiting') await scripted.sockets.next();
        page.connection.close();
      }
    });

    test('what stopped stays away, until it is told to come', async () => {
      const scripted = await Scripted.start();
      for (const code of [1000, 1008, 4403, 4409, 4444, 4002, 3000]) {
        const [page, server] = await open(scripted);
        const before = scripted.dialed;
        server.close(code);
        await page.until(code === 4403 ? 'login' : 'stopped');
        await sleep(20);
        assert.equal(scripted.dialed, before, `${code}`);
        page.connection.reconnect();
        await scripted.sockets.next();
        await page.until('open');
        page.connection.close();
      }
    });

    test('the app decides otherwise, also later', async () => {
      const scripted = await Scripted.start();
      let answer;
      const [page, server] = await open(scripted, { onclose: (...end) => answer(...end) });
      answer = async (code, reason) => [code, reason].join() === '4401,expired';
      server.close(4401, 'expired');
      assert.equal((await page.until('waiting')).code, 4401);
      answer = () => undefined;
      (await scripted.sockets.next()).close(1012);
      assert.equal((await page.until('waiting')).code, 1012);
      answer = () => false;
      (await scripted.sockets.next()).close(1012);
      assert.equal((await page.until('stopped')).code, 1012);
    });

    test('it comes back from a node that was killed, and one that never answers', async () => {
      const hole = createServer(() => {});
      await once(hole.listen(0, '127.0.0.1'), 'listening');
      const { port } = hole.address();
      const page = new Page(`ws://127.0.0.1:${port}/ws`, { WebSocket, opening: 30 });
      for (const _ of [1, 2]) assert.equal((await page.until('waiting')).code, 1006);
      page.connection.close();
      hole.close();
      const scripted = await Scripted.start();
      const [other, server] = await open(scripted);
      scripted.end();
      server.terminate();
      await other.until('waiting');
      await other.until('waiting'); // nobody is there
      await scripted.start();
      await scripted.sockets.next();
      await other.until('open');
      other.connection.close();
    });

    test('text stays text and binary binary, both ways; what is not open refuses', async () => {
      const scripted = await Scripted.start();
      const [page, server] = await open(scripted);
      for (const message of ['hello', '', '\u0001 as it is', Buffer.from([0, 255, 1])]) {
        server.send(message);
        const heard = await page.heard.next();
        assert.deepEqual(heard, typeof message === 'string' ? message : new Uint8Array(message));
        assert.equal(page.connection.send(heard), true);
        assert.deepEqual(await server.heard.next(), message);
      }
      server.close(1008);
      await page.until('stopped');
      assert.equal(page.connection.send('nobody hears this'), false);
    });

    test('send refuses when too much waits to be written, and what it took arrives', async () => {
      const scripted = await Scripted.start();
      const [page, server] = await open(scripted);
      server.pause();
      let taken = 0;
      while (taken < 100 && page.connection.send('x'.repeat(1 << 20))) taken++;
      assert.ok(taken > 0 && taken < 100, `${taken} taken`);
      server.resume();
      for (let n = 0; n < taken; n++) await server.heard.next();
      while (!page.connection.send('again')) await sleep(1);
      assert.equal(await server.heard.next(), 'again');
      page.connection.close();
    });

    test('close says its code, and then nothing is heard or done', async () => {
      const scripted = await Scripted.start();
      const ends = [];
      const [page, server] = await open(scripted, { onclose: code => { ends.push(code); } });
      server.send('not heard any more');
      page.connection.close(4321, 'enough');
      assert.deepEqual(await server.closed, [4321, 'enough']);
      assert.equal(page.connection.status, 'stopped');
      await sleep(20);
      assert.deepEqual([scripted.dialed, page.heard.kept, ends], [1, [], []]);
      // Also while it waits for its turn.
      const [other, second] = await open(scripted, { first: 50 });
      second.close(1012);
      await other.until('waiting');
      other.connection.close();
      await sleep(60);
      assert.equal(scripted.dialed, 2);
    });

    test('it resumes from the last message that the app had', async () => {
      const scripted = await Scripted.start({ speaks: RESUME });
      const missed = [];
      const [page, server] = await open(scripted, { onmissed: reason => missed.push(reason) });
      assert.deepEqual([server.offered, server.since], [['resume.v1'], null]);
      const frames = [control('=to/k+en'), control('7'), 'seven', control('8'), Buffer.from([8]), 'not kept',
        control('\u0001 is no control'), control('9'), control('\u0001nine')];
      for (const frame of frames) server.send(frame);
      const heard = [];
      for (let n = 0; n < 5; n++) heard.push(await page.heard.next());
      assert.deepEqual(heard, ['seven', new Uint8Array([8]), 'not kept', '\u0001 is no control', '\u0001nine']);
      assert.equal(page.connection.position, 'to/k+en~9');
      server.terminate();
      const second = await scripted.sockets.next();
      assert.deepEqual([second.offered, second.since], [['resume.v1'], 'to/k+en~9']);
      // A new base is one from its moment; without anything since it is the position.
      second.send(control('=other'));
      second.send('welcome');
      await page.heard.next();
      second.terminate();
      const third = await scripted.sockets.next();
      assert.equal(third.since, 'other');
      assert.deepEqual(missed, []);
      page.connection.close();
    });

    test('a mark whose message never came moves nothing, nor does what it is no mark of', async () => {
      const scripted = await Scripted.start({ speaks: RESUME });
      const [page, server] = await open(scripted, { onmissed() {} });
      for (const frame of [control('=base'), control('1'), 'one', control('2')]) server.send(frame);
      await page.heard.next();
      server.terminate();
      const second = await scripted.sockets.next();
      assert.equal(second.since, 'base~1');
      for (const frame of [control('?of a later version'), 'not kept', control(''), 'nor this']) second.send(frame);
      await page.heard.next();
      await page.heard.next();
      assert.equal(page.connection.position, 'base~1');
      page.connection.close();
    });

    test('what was missed is told, and the position is a new one', async () => {
      const scripted = await Scripted.start({ speaks: RESUME });
      const told = new Queue();
      const [page, server] = await open(scripted, { onmissed: reason => told.push([reason, page.connection.position]) });
      for (const frame of [control('=old'), control('5'), 'five', control('! Late new')]) server.send(frame);
      // It moves on only when the app was told.
      assert.deepEqual(await told.next(), ['Late', 'old~5']);
      server.send('on');
      for (const text of ['five', 'on']) assert.equal(await page.heard.next(), text);
      assert.equal(page.connection.position, 'new');
      page.connection.close();
    });

    test('a page begins from the position that came with it', async () => {
      const scripted = await Scripted.start({ speaks: RESUME });
      const page = new Page(`${scripted.url}?room=tea`, { WebSocket, since: 'kept~3', onmissed() {} });
      assert.equal((await scripted.sockets.next()).since, 'kept~3');
      await page.until('open');
      page.connection.close();
    });

    test('of a server without resume.v1 it hears all the same, and that it may have missed something', async () => {
      const scripted = await Scripted.start();
      const missed = new Queue();
      const [page, server] = await open(scripted, { onmissed: reason => missed.push(reason) });
      // A server that answers none of what was offered gets a handshake without; ours is closed by the client.
      const plain = server.offered.length ? await scripted.sockets.next() : server;
      assert.deepEqual(plain.offered, []);
      plain.send('\u0001 as it is');
      assert.equal(await page.heard.next(), '\u0001 as it is');
      assert.deepEqual(missed.kept, []);
      plain.terminate();
      assert.equal(await missed.next(), 'unresumed');
      page.connection.close();
    });

    test('a page with a position that nobody can go on from is told', async () => {
      const scripted = await Scripted.start({ speaks: offered => offered.has('chat') && 'chat' });
      const missed = new Queue();
      const protocols = () => ['chat', 'token'];
      const [page, server] = await open(scripted, { since: 'kept~3', protocols, onmissed: reason => missed.push(reason) });
      assert.deepEqual(server.offered, ['resume.v1', 'chat', 'token']);
      assert.equal(await missed.next(), 'unresumed');
      assert.equal(page.connection.position, '');
      page.connection.close();
    });

    test('where an older version came back, a page that resumed is there all the same, and is told', async () => {
      let older = false;
      const scripted = await Scripted.start({ speaks: offered => !older && RESUME(offered) });
      const missed = new Queue();
      const [page, server] = await open(scripted, { bound: 1, onmissed: reason => missed.push(reason) });
      server.send(control('=base'));
      server.send('welcome');
      await page.heard.next();
      older = true;
      server.terminate();
      assert.equal(await missed.next(), 'unresumed');
      assert.equal(page.connection.position, '');
      // Few are without: whoever was long in a tunnel is to go on where it was.
      const { since } = await scripted.sockets.next();
      assert.equal(since, 'base');
      assert.ok(scripted.dialed > 7, `${scripted.dialed}`);
      page.connection.close();
    });

    test('without onmissed nothing is offered, whatever the app offers besides', async () => {
      const scripted = await Scripted.start({ speaks: offered => offered.has('chat') && 'chat' });
      const [page, server] = await open(scripted, { protocols: 'chat' });
      assert.deepEqual(server.offered, ['chat']);
      page.connection.close();
    });
  });
}

suite('the pauses', { timeout }, () => {
  /** The bounds of the pauses, as `Math.random` shows them when it says nearly 1. */
  const pauses = async (page, count) => {
    const pauses = [];
    while (pauses.length < count) pauses.push((await page.until('waiting')).pause);
    page.connection.close();
    return pauses;
  };

  const always = (t, random) => t.mock.method(Math, 'random', () => random);

  test('are random below a bound, from the first on', async () => {
    const url = `ws://127.0.0.1:${await freePort()}/ws`;
    const all = Array.from({ length: 60 }, () => new Page(url, { WebSocket: Ws, first: 1000 }));
    const drawn = (await Promise.all(all.map(page => pauses(page, 1)))).flat();
    assert.ok(drawn.every(pause => pause >= 0 && pause < 1000), `${drawn}`);
    // 60 of them are all in one half once in 2^59 runs.
    assert.ok(Math.min(...drawn) < 500 && Math.max(...drawn) > 500, `${drawn}`);
    assert.equal(new Set(drawn).size, drawn.length);
  });

  test('double up to a bound', async t => {
    always(t, 0.5);
    const page = new Page(`ws://127.0.0.1:${await freePort()}/ws`, { WebSocket: Ws, first: 2, bound: 10 });
    assert.deepEqual(await pauses(page, 5), [1, 2, 4, 5, 5]);
  });

  test('do not begin anew when a socket opened, but when it held', async t => {
    always(t, 0.5);
    for (const [held, wanted] of [[1e9, [1, 2, 4, 8]], [0, [1, 1, 1, 1]]]) {
      const scripted = await Scripted.start();
      const page = new Page(scripted.url, { WebSocket: Ws, first: 2, held });
      const closing = (async () => {
        for (const _ of wanted) {
          const server = await scripted.sockets.next();
          server.close(1011);
        }
      })();
      assert.deepEqual(await pauses(page, wanted.length), wanted);
      await closing;
      scripted.end();
    }
  });
});

suite('server-sent events', { timeout }, () => {
  const open = (scripted, options) => new Page(scripted.url, { WebSocket: Ws, EventSource, events: `${scripted.page}events`, ...options });

  test('are there where no WebSocket gets through, and go on where they were', async () => {
    const scripted = await Scripted.start({ refuses: 403 });
    const missed = new Queue();
    const page = open(scripted, { onmissed: reason => missed.push(reason) });
    const stream = await scripted.streams.next();
    assert.deepEqual([scripted.dialed, stream.since], [3, null]);
    stream.event('t~0', '');
    stream.event('t~1', 'one');
    stream.event('t~2', Buffer.from([0, 255]).toString('base64'), 'binary');
    stream.event('t~3', '');
    for (const message of ['one', new Uint8Array([0, 255]), '']) assert.deepEqual(await page.heard.next(), message);
    assert.deepEqual([page.connection.status, page.connection.send('no')], ['open', false]);
    stream.event('t~4', 'Late', 'missed');
    assert.equal(await missed.next(), 'Late');
    stream.destroy();
    const second = await scripted.streams.next();
    assert.deepEqual([scripted.dialed, second.since], [4, 't~4'], 'a WebSocket was tried again');
    second.event('t~5', 'on');
    assert.equal(await page.heard.next(), 'on');
    page.connection.close();
    await once(second, 'close');
    assert.deepEqual(missed.kept, []);
  });

  test('give way to a WebSocket when one gets through', async () => {
    const scripted = await Scripted.start({ refuses: 403, speaks: RESUME });
    const page = open(scripted, { onmissed() {} });
    const stream = await scripted.streams.next();
    stream.event('t~7', 'seven');
    await page.heard.next();
    scripted.refuses = 0;
    stream.destroy();
    assert.equal((await scripted.sockets.next()).since, 't~7');
    page.connection.close();
  });

  test('are not what a page gets whose node is away for a while', async () => {
    const scripted = await Scripted.start();
    const page = open(scripted);
    const server = await scripted.sockets.next();
    await page.until('open');
    scripted.refuses = 503;
    server.terminate();
    while (scripted.dialed < 8) await page.until('waiting');
    assert.equal(scripted.asked, 0);
    scripted.refuses = 0;
    await scripted.sockets.next();
    page.connection.close();
  });

  test('that are refused too leave WebSockets their turns', async () => {
    const scripted = await Scripted.start({ refuses: 503, events: 503 });
    const page = open(scripted);
    while (scripted.asked < 3) await page.until('waiting');
    assert.equal(scripted.dialed, 5);
    scripted.refuses = 0;
    await scripted.sockets.next();
    page.connection.close();
  });

  test('of a server without positions tell that something may have been missed', async () => {
    const scripted = await Scripted.start({ refuses: 403 });
    const missed = new Queue();
    const page = open(scripted, { onmissed: reason => missed.push(reason) });
    (await scripted.streams.next()).destroy();
    await scripted.streams.next();
    assert.equal(await missed.next(), 'unresumed');
    page.connection.close();
  });
});

suite('a message that the app cannot take', { timeout }, () => {
  /** As browsers do: what a handler throws ends nothing. */
  class Browsers extends Ws {
    set onmessage(hear) {
      super.onmessage = message => { try { hear(message); } catch (error) { Browsers.thrown.push(error.message); } };
    }
    static thrown = [];
  }

  test('comes again, whatever follows that is not kept', async () => {
    const scripted = await Scripted.start({ speaks: RESUME });
    const heard = new Queue();
    const page = new Page(scripted.url, { WebSocket: Browsers, onmissed() {}, onmessage(text) {
      if (text === 'poison') throw new Error(text);
      heard.push(text);
    } });
    const server = await scripted.sockets.next();
    for (const frame of [control('=base'), control('1'), 'one', control('2'), 'poison', 'not kept']) server.send(frame);
    for (const text of ['one', 'not kept']) assert.equal(await heard.next(), text);
    assert.deepEqual(Browsers.thrown, ['poison']);
    assert.equal(page.connection.position, 'base~1');
    server.terminate();
    const second = await scripted.sockets.next();
    assert.equal(second.since, 'base~1');
    for (const frame of [control('2'), 'two', control('3'), 'three']) second.send(frame);
    for (const text of ['two', 'three']) assert.equal(await heard.next(), text);
    assert.equal(page.connection.position, 'base~3');
    page.connection.close();
  });
});

suite('the module and a node', { timeout }, () => {
  test('talk, and find one another again after a restart', async () => {
    const { redisUrl } = await Program.redis();
    const node = await Program.example('chat', { REDIS_URL: redisUrl });
    class Alice extends Ws {
      constructor(url, protocols) { super(url, protocols, { headers: { cookie: `name-${node.port}=alice` } }); }
    }
    const missed = new Queue();
    const page = new Page(node.url, { WebSocket: Alice, onmissed: reason => missed.push(reason) });
    const { type, user } = JSON.parse(await page.heard.next());
    assert.deepEqual([type, user], ['welcome', 'alice']);
    await page.until('open');
    await node.end();
    assert.equal((await page.until('waiting')).code, 1012);
    await node.start();
    assert.equal(await missed.next(), 'unresumed');
    while (JSON.parse(await page.heard.next()).type !== 'welcome');
    page.connection.close();
    const stranger = new Page(node.url, { WebSocket: Ws });
    assert.equal((await stranger.until('login')).code, 4403);
  });
});
