// Chromium's own EventSource: two nodes, a page at each.

import assert from 'node:assert/strict';
import { after, before, suite, test } from 'node:test';
import { chromium } from 'playwright-core';
import { Program } from './support.mjs';

const { CHROMIUM } = process.env;
const PATIENCE = 30_000;
const args = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-sync',
  '--disable-background-networking', '--disable-component-update'];

const skip = !CHROMIUM && 'there is no Chromium: set CHROMIUM';

suite('a page of events', { skip, timeout: 4 * PATIENCE }, () => {
  let browser, nodes, pages;
  before(async () => {
    browser = await chromium.launch({ executablePath: CHROMIUM, args });
    const redis = await Program.redis();
    nodes = [];
    for (const _ of [1, 2]) {
      nodes.push(await Program.example('events', { REDIS_URL: redis.redisUrl }));
    }
    pages = [];
    for (const node of nodes) {
      const page = await browser.newPage();
      page.setDefaultTimeout(PATIENCE);
      await page.goto(node.page);
      await page.getByText('connected').waitFor();
      pages.push(page);
    }
  });
  after(() => browser?.close());

  const say = (node, text) => fetch(`${node.page}say`, { method: 'POST', body: text });
  const shows = (page, text) => page.locator('li', { hasText: text }).waitFor();
  const all = page => page.locator('li').allTextContents();

  test('what is said at one node is shown at the other', async () => {
    await say(nodes[0], ' two\nlines: grüße');
    for (const page of pages) {
      await shows(page, 'grüße');
      assert.deepEqual(await all(page), [' two\nlines: grüße']);
    }
  });

  test('it comes back by itself from a node that drains, and from one that was killed', async () => {
    for (const signal of ['SIGINT', 'SIGKILL']) {
      await nodes[1].end(signal);
      await pages[1].getByText('comes back').waitFor();
      for (const n of [1, 2, 3]) await say(nodes[0], `${n} without it, ${signal}`);
      await nodes[1].start();
      await pages[1].getByText('connected').waitFor();
      await say(nodes[0], `after ${signal}`);
      await shows(pages[1], `after ${signal}`);
    }
  });

  test('what was said meanwhile is shown, in order and once', async () => {
    const [here, there] = [await all(pages[0]), await all(pages[1])];
    assert.equal(here.length, 9, 'control: one node was there all the time');
    assert.deepEqual(there, here);
  });

  test('it does not come back after an end for good', async () => {
    await fetch(`${nodes[0].page}end`, { method: 'POST' });
    for (const page of pages) await page.getByText('over').waitFor();
    assert.equal((await all(pages[0])).length, 9, 'control: it heard all before');
  });
});
