// Chromium, with the chat page: two nodes, two people, no client library.

import assert from 'node:assert/strict';
import { after, before, suite, test } from 'node:test';
import { PATIENCE, Program, browse, skip } from './support.mjs';

suite('the chat page', { skip, timeout: 2 * PATIENCE }, () => {
  let browser, nodes, alice, bob;
  before(async () => {
    browser = await browse();
    const redis = await Program.redis();
    nodes = [];
    for (const _ of [1, 2]) {
      nodes.push(await Program.example('chat', { REDIS_URL: redis.redisUrl }));
    }
    [alice, bob] = [await Person.at(browser, nodes[0]), await Person.at(browser, nodes[1])];
  });
  after(() => browser?.close());

  test('a page without a user reads 4403, one of another origin gets no socket', async () => {
    assert.deepEqual(await alice.closing(nodes[0].url), [4403, 'authentication required']);
    assert.deepEqual(await alice.closing(nodes[1].url), [1006, '']);
  });

  test('a name lets one in', async () => {
    await alice.enter('alice');
    await bob.enter('bob');
  });

  test('two people at two nodes talk', async () => {
    await alice.open('user:bob');
    await alice.say('hello from the first node');
    await bob.open('user:alice');
    await bob.hears('hello from the first node');
    await bob.say('hello from the second');
    await alice.hears('hello from the second');
  });

  test('a room is heard at both nodes until it is left', async () => {
    for (const person of [alice, bob]) await person.join('tea');
    await alice.sayUntilHeard('who is here?', bob);
    await bob.page.getByRole('button', { name: 'Leave' }).click();
    await bob.open('room:lobby');
    // The node has taken the leaving when it answers what was said after it.
    await bob.say('left');
    await bob.hears('left');
    await alice.say('bob cannot hear this');
    await alice.open('room:lobby');
    await alice.say('but this');
    await bob.hears('but this');
    assert.ok(!(await bob.everything()).includes('bob cannot hear this'));
    assert.ok((await alice.everything()).includes('bob cannot hear this'), 'control');
  });

  test('who comes and goes is seen at the other node', async () => {
    const carol = await Person.at(browser, nodes[1]);
    await carol.enter('carol');
    await alice.page.locator('[data-talk="user:carol"]').waitFor();
    await carol.join('tea');
    await alice.open('room:tea');
    await alice.page.getByText('Here now: alice, carol').waitFor();
    await carol.page.context().close();
    await alice.page.locator('[data-talk="user:carol"]').waitFor({ state: 'detached' });
    await alice.page.getByText('Here now: alice', { exact: true }).waitFor();
  });

  test('one signs out the other devices', async () => {
    const other = await Person.at(browser, nodes[1]);
    await other.enter('alice');
    await alice.page.getByText('My devices').click();
    const devices = alice.page.getByRole('list', { name: 'My devices' }).getByRole('listitem');
    await devices.nth(1).waitFor();
    assert.equal(await devices.filter({ hasText: 'this one' }).count(), 1);
    await alice.page.getByRole('button', { name: 'Sign out the other ones' }).click();
    await other.page.getByText('You were signed out at another device').waitFor();
    await devices.nth(1).waitFor({ state: 'detached' });
    await alice.open('room:lobby');
  });

  test('a page comes back by itself when its node restarts', async () => {
    await nodes[1].end();
    await bob.page.getByText('Connection lost').waitFor();
    await nodes[1].start();
    await bob.page.getByText('Connection lost').waitFor({ state: 'hidden' });
    await bob.open('room:lobby');
    await bob.say('back again');
    await alice.hears('back again');
    await alice.sayUntilHeard('welcome back', bob);
  });
});

/** Somebody with a window of their own. */
class Person {
  static async at(browser, node) {
    const context = await browser.newContext();
    context.setDefaultTimeout(PATIENCE);
    const page = await context.newPage();
    await page.goto(node.page);
    return new Person(page);
  }

  constructor(page) {
    this.page = page;
    this.log = page.getByRole('log');
  }

  async enter(name) {
    await this.page.getByLabel('Your name').fill(name);
    await this.page.getByRole('button', { name: 'Come in' }).click();
    await this.log.waitFor();
  }

  /** How a socket from this page ends. */
  closing(url) {
    return this.page.evaluate(url => new Promise(resolve => {
      new WebSocket(url).onclose = ({ code, reason }) => resolve([code, reason]);
    }), url);
  }

  open(talk) {
    return this.page.locator(`[data-talk="${talk}"]`).click();
  }

  async join(room) {
    const field = this.page.getByLabel('Join a room');
    await field.fill(room);
    await field.press('Enter');
  }

  async say(text) {
    await this.page.getByRole('textbox', { name: 'Message' }).fill(text);
    await this.page.getByRole('button', { name: 'Send' }).click();
  }

  hears(text) {
    return this.log.getByText(text, { exact: true }).first().waitFor();
  }

  /** Joining has no answer on the page, so the other may not be in the room yet. */
  async sayUntilHeard(text, other) {
    for (;;) {
      await this.say(text);
      const heard = other.log.getByText(text, { exact: true }).first();
      if (await heard.waitFor({ timeout: 1000 }).then(() => true, () => false)) return;
    }
  }

  /** What this window has heard in all its talks. */
  everything() {
    return this.page.evaluate(() => JSON.stringify({ ...sessionStorage }));
  }
}
