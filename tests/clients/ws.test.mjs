// Node's `ws`, the most used WebSocket client outside browsers.

import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { before, suite, test } from 'node:test';
import { Client, Program, refusal } from './support.mjs';

const timeout = 60_000;

suite('echo', { timeout }, () => {
  let node, client;
  before(async () => {
    node = await Program.example('echo');
    client = await Client.open(node.url);
  });

  test('text stays text and binary binary, also empty', async () => {
    for (const message of ['hello', '', 'grüße 🦀', Buffer.from([0, 255, 1]), Buffer.alloc(0)]) {
      client.socket.send(message);
      assert.deepEqual(await client.next(), message);
    }
  });

  const bytesRead = async (client, message) => {
    const stream = client.socket._socket;
    const before = stream.bytesRead;
    client.socket.send(message, { compress: true });
    assert.equal(await client.next(), message);
    return stream.bytesRead - before;
  };

  test('permessage-deflate is agreed on, and what comes is compressed', async () => {
    const text = JSON.stringify(Array.from({ length: 100 }, (_, n) => ({ order: n * 7919, paid: n % 3 === 0 })));
    const offered = await Client.open(node.url, [], { perMessageDeflate: { threshold: 0 } });
    assert.equal(offered.socket.extensions, 'permessage-deflate');
    for (let n = 0; n < 3; n++) assert.ok(await bytesRead(offered, text) < text.length / 3);
    assert.ok(await bytesRead(offered, 'a'.repeat(100_000)) < 1_000);
    offered.socket.send(text.slice(0, 1000), { fin: false, compress: true });
    offered.socket.send(text.slice(1000), { fin: true, compress: true });
    assert.equal(await offered.next(), text);
    const narrow = await Client.open(node.url, [], { perMessageDeflate: { serverMaxWindowBits: 9 } });
    assert.equal(narrow.socket.extensions, 'permessage-deflate');
    assert.ok(await bytesRead(narrow, text) > text.length, 'it does not fit into the window');
    assert.ok(await bytesRead(narrow, text.slice(0, 512)) < 400);
    const plain = await Client.open(node.url, [], { perMessageDeflate: false });
    assert.equal(plain.socket.extensions, '');
    assert.ok(await bytesRead(plain, text) > text.length, 'control');
  });

  test('a fragmented message comes back whole, a ping inside it is answered', async () => {
    client.socket.send('one ', { fin: false });
    client.socket.ping('inside');
    client.socket.send('two ', { fin: false });
    client.socket.send('three', { fin: true });
    const [payload] = await once(client.socket, 'pong');
    assert.equal(payload.toString(), 'inside');
    assert.equal(await client.next(), 'one two three');
  });

  test('eight megabytes come back as they were', async () => {
    const message = randomBytes(8 << 20);
    client.socket.send(message);
    assert.ok(message.equals(await client.next()));
  });

  test('eight megabytes of one letter are too much for the few bytes that come of them', async () => {
    const bomb = await Client.open(node.url);
    bomb.socket.send(Buffer.alloc(8 << 20, 'a'));
    assert.equal((await bomb.closed)[0], 1009);
  });

  test('a thousand messages come back in order', async () => {
    for (let n = 0; n < 1000; n++) client.socket.send(`${n}`);
    for (let n = 0; n < 1000; n++) assert.equal(await client.next(), `${n}`);
  });

  test('a close comes back with its code and without one', async () => {
    for (const [code, answer] of [[1000, 1000], [3001, 3001], [4999, 4999], [undefined, 1005]]) {
      const leaving = await Client.open(node.url);
      leaving.socket.close(code);
      assert.equal((await leaving.closed)[0], answer);
    }
  });

  test('a page of another origin is refused, its own is not', async () => {
    const [status, reason] = await refusal(node.url, { origin: 'https://evil.example' });
    assert.equal(status, 403);
    assert.match(reason, /origin/);
    await Client.open(node.url, [], { origin: `http://127.0.0.1:${node.port}` });
  });
});

suite('two nodes', { timeout }, () => {
  let nodes;
  before(async () => {
    const redis = await Program.redis();
    const env = { REDIS_URL: redis.redisUrl };
    nodes = { jwt: [], chat: [] };
    for (const name of ['jwt', 'jwt', 'chat', 'chat']) {
      nodes[name].push(await Program.example(name, env));
    }
  });

  const login = async node => (await fetch(`${node.page}login/alice`, { method: 'POST' })).text();

  /** A person at a chat node. */
  const enter = async (node, name) => {
    const client = await Client.open(node.url, [], { headers: { cookie: `name-${node.port}=${name}` } });
    await client.find(({ type }) => type === 'welcome');
    return client;
  };

  test('without a user the close says 4403', async () => {
    const stranger = await Client.open(nodes.jwt[0].url, ['chat']);
    assert.equal(stranger.socket.protocol, 'chat');
    assert.deepEqual(await stranger.closed, [4403, 'authentication required']);
  });

  test('a token is taken as a subprotocol and never echoed', async () => {
    const client = await Client.open(nodes.jwt[0].url, ['chat', 'bearer', await login(nodes.jwt[0])]);
    assert.equal(client.socket.protocol, 'chat');
    client.socket.send('hello');
    assert.equal(await client.next(), 'hello');
  });

  test('a message over the limit is answered with 1009', async () => {
    const headers = { cookie: `token=${await login(nodes.jwt[0])}` };
    const client = await Client.open(nodes.jwt[0].url, [], { headers });
    client.socket.send('x'.repeat(64 * 1024 + 1));
    assert.equal((await client.closed)[0], 1009);
  });

  test('a logout at one node closes the sockets of both', async () => {
    const headers = { cookie: `token=${await login(nodes.jwt[0])}` };
    const clients = await Promise.all(nodes.jwt.map(node => Client.open(node.url, [], { headers })));
    const answer = await fetch(`${nodes.jwt[1].page}logout`, { method: 'POST', headers });
    assert.equal(answer.status, 200);
    for (const client of clients) assert.deepEqual(await client.closed, [4001, 'logged out']);
  });

  test('a room and a person are heard at the other node', async () => {
    const [alice, bob] = [await enter(nodes.chat[0], 'alice'), await enter(nodes.chat[1], 'bob')];
    await alice.find(({ type, user, online }) => type === 'presence' && user === 'bob' && online);
    for (const client of [alice, bob]) client.say({ type: 'join', room: 'tea' });
    // Joining has no answer; a direct message to oneself comes after it.
    bob.say({ type: 'direct', to: 'bob', text: 'joined' });
    await bob.find(({ text }) => text === 'joined');
    alice.say({ type: 'room', room: 'tea', text: 'for the room' });
    alice.say({ type: 'direct', to: 'bob', text: 'for bob' });
    for (const client of [alice, bob]) {
      const { user, node } = await client.find(({ text }) => text === 'for the room');
      assert.deepEqual([user, node], ['alice', nodes.chat[0].port]);
      await client.find(({ text }) => text === 'for bob');
    }
  });

  test('a node that stops says 1012 and the client comes back', async () => {
    const alice = await enter(nodes.chat[0], 'alice');
    await nodes.chat[0].end('SIGINT');
    assert.equal((await alice.closed)[0], 1012);
    await nodes.chat[0].start();
    await enter(nodes.chat[0], 'alice');
  });
});
