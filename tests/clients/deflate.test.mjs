// Compressed messages, as Chromium and Python's `websockets` take them: agreed on, and few bytes. Node's are in ws.test.mjs.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { before, suite, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { Counted, PATIENCE, Program, browse, skip } from './support.mjs';

const text = JSON.stringify(Array.from({ length: 100 }, (_, n) => ({ order: n * 7919, paid: n % 3 === 0 })));

suite('compressed', { timeout: 2 * PATIENCE }, () => {
  let way;
  before(async () => { way = await Counted.start(await Program.example('echo')); });

  test('by Chromium', { skip }, async () => {
    const browser = await browse();
    const page = await browser.newPage();
    await page.goto(way.page); // Refused, and of the socket's origin all the same.
    await page.evaluate(url => new Promise(resolve => {
      window.socket = new WebSocket(url);
      window.socket.onopen = resolve;
    }), way.url);
    assert.match(await page.evaluate(() => window.socket.extensions), /^permessage-deflate\b/);
    for (let n = 0; n < 3; n++) {
      const before = way.bytes;
      const heard = await page.evaluate(text => new Promise(resolve => {
        window.socket.onmessage = ({ data }) => resolve(data);
        window.socket.send(text);
      }), text);
      assert.equal(heard, text);
      assert.ok(way.bytes - before < text.length / 3, `${way.bytes - before} of ${text.length}`);
    }
    await browser.close();
  });

  const { PYTHON_WEBSOCKETS } = process.env;
  const without = !PYTHON_WEBSOCKETS && 'there is no `websockets` for Python';
  test('by Python', { skip: without }, async () => {
    const before = way.bytes;
    const script = fileURLToPath(new URL('deflate.py', import.meta.url));
    const env = { ...process.env, PYTHONPATH: PYTHON_WEBSOCKETS };
    const child = spawn('python3', [script, way.url, text], { env, stdio: ['ignore', 'ignore', 'inherit'] });
    assert.deepEqual(await once(child, 'exit'), [0, null]);
    // Three echoes and a handshake.
    assert.ok(way.bytes - before < text.length + 500, `${way.bytes - before} of three times ${text.length}`);
  });
});
