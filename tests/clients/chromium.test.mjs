// Chromium, with the module for pages, and with the chat page: two nodes, two people.

import assert from 'node:assert/strict';
import { after, before, suite, test } from 'node:test';
import { Balancer, PATIENCE, Program, Scripted, browse, skip } from './support.mjs';

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

  test('what a server kept is shown after a reload, and what is said then comes below', async () => {
    const context = await browser.newContext();
    const messages = [{ type: 'room', room: 'lobby', user: 'bob', node: nodes[1].port, text: 'said yesterday' },
      { type: 'direct', user: 'bob', to: 'dora', node: nodes[1].port, text: 'for dora alone' }];
    await context.route('**/history?*', route => route.fulfill({ json: { user: 'dora', messages, position: '' } }));
    await context.addCookies([{ name: `name-${nodes[0].port}`, value: 'dora', url: nodes[0].page }]);
    const dora = await Person.in(context, nodes[0]);
    await dora.hears('said yesterday');
    await bob.sayUntilHeard('said today', dora);
    const said = await dora.log.locator('p').allTextContents();
    assert.deepEqual([said[0], said.at(-1)], ['said yesterday', 'said today']);
    await dora.open('user:bob');
    await dora.hears('for dora alone');
    await context.close();
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

suite('the chat page behind a load balancer', { skip, timeout: 2 * PATIENCE }, () => {
  test('comes back on the other node when its own is killed', async () => {
    const browser = await browse();
    const redis = await Program.redis();
    const nodes = [];
    for (const _ of [1, 2]) nodes.push(await Program.example('chat', { REDIS_URL: redis.redisUrl }));
    const balancer = await Balancer.start(nodes);
    // Each node knows its people by its own cookie; both are to know alice.
    const cookies = nodes.map(({ port }) => ({ name: `name-${port}`, value: 'alice', url: balancer.page }));
    const alice = await Person.at(browser, balancer, cookies);
    await alice.log.waitFor();
    const bob = await Person.at(browser, nodes[1]);
    await bob.enter('bob');
    const at = node => alice.page.locator('#me').getByText(`node ${node.port}`).waitFor();
    await at(nodes[0]);
    await nodes[0].end('SIGKILL');
    await at(nodes[1]);
    await alice.page.getByText('Connection lost').waitFor({ state: 'hidden' });
    await alice.open('room:lobby');
    await bob.open('room:lobby');
    await alice.sayUntilHeard('here I am again', bob);
    await browser.close();
  });
});

suite('the module in Chromium', { skip, timeout: PATIENCE }, () => {
  const RESUME = offered => offered.has('resume.v1') && 'resume.v1';
  let browser;
  before(async () => { browser = await browse(); });
  after(() => browser?.close());

  /** A page of the server with a connection: what it was told is in `window.told`. */
  const open = async (scripted, options) => {
    const page = await (await browser.newContext()).newPage();
    await page.goto(scripted.page);
    await page.evaluate(async options => {
      const { connect } = await import('/cluster.js');
      window.told = [];
      const tell = name => (...told) => { window.told.push([name, ...told].join(' ')); };
      const onmessage = data => {
        if (data === 'poison') throw new Error(data);
        tell('message')(data);
      };
      const onstatus = (status, { code }) => tell('status')(status, code ?? '');
      const resumes = options.resumes ? { onmissed: tell('missed') } : {};
      window.connection = connect('/ws?room=tea', { onmessage, onstatus, first: 1, ...resumes, ...options });
    }, options);
    return page;
  };
  const told = (page, wanted) => page.waitForFunction(wanted => {
    const at = window.told.indexOf(wanted);
    return at >= 0 && window.told.splice(0, at + 1);
  }, wanted).then(handle => handle.jsonValue());

  test('a server that speaks no resume.v1 is tried without it', async () => {
    const scripted = await Scripted.start();
    const page = await open(scripted, { resumes: true });
    await told(page, 'status open ');
    const offered = [await scripted.sockets.next(), await scripted.sockets.next()].map(({ offered }) => offered);
    assert.deepEqual(offered, [['resume.v1'], []]);
  });

  test('it goes on after the last message that the app could take', async () => {
    const scripted = await Scripted.start({ speaks: RESUME });
    const page = await open(scripted, { resumes: true });
    const server = await scripted.sockets.next();
    const frames = ['\u0001=base', '\u00011', 'one', '\u00012', Buffer.from([1, 2]), '\u00013', 'poison', 'not kept'];
    for (const frame of frames) server.send(frame);
    await told(page, 'message not kept');
    server.terminate();
    const second = await scripted.sockets.next();
    assert.equal(second.since, 'base~2');
    second.send('\u0001! TooMany other');
    await told(page, 'missed TooMany');
    assert.equal(await page.evaluate(() => window.connection.position), 'other');
  });

  test('codes that a browser reads: back, stop, log in', async () => {
    const scripted = await Scripted.start();
    for (const [code, status] of [[1012, 'waiting'], [1011, 'waiting'], [4409, 'stopped'], [1008, 'stopped'], [4403, 'login']]) {
      const page = await open(scripted, {});
      const server = await scripted.sockets.next();
      await told(page, 'status open ');
      server.close(code);
      await told(page, `status ${status} ${code}`);
      if (status === 'waiting') await scripted.sockets.next();
    }
  });

  test('online, and being seen, end a pause; a stopped one stays', async () => {
    const scripted = await Scripted.start();
    for (const [target, name] of [['window', 'online'], ['document', 'visibilitychange']]) {
      const page = await open(scripted, { first: 1e9, bound: 1e9 });
      const fire = () => page.evaluate(([target, name]) => { globalThis[target].dispatchEvent(new Event(name)); }, [target, name]);
      await told(page, 'status open ');
      await fire(); // nothing to do
      (await scripted.sockets.next()).close(1012);
      await told(page, 'status waiting 1012');
      await fire();
      await told(page, 'status open ');
      await fire();
      (await scripted.sockets.next()).close(4409);
      await told(page, 'status stopped 4409');
      const before = scripted.dialed;
      await fire();
      assert.equal(await page.evaluate(() => window.connection.status), 'stopped');
      assert.equal(scripted.dialed, before);
    }
  });

  test('events are heard where no WebSocket gets through', async () => {
    const scripted = await Scripted.start({ refuses: 403 });
    const page = await open(scripted, { resumes: true, events: '/events' });
    const stream = await scripted.streams.next();
    stream.event('t~0', '');
    stream.event('t~1', 'one');
    stream.event('t~2', 'AQI=', 'binary');
    assert.deepEqual((await told(page, 'message 1,2')).slice(-3), ['status open ', 'message one', 'message 1,2']);
    stream.destroy();
    assert.equal((await scripted.streams.next()).since, 't~2');
  });
});

/** Somebody with a window of their own. */
class Person {
  static async at(browser, node, cookies = []) {
    const context = await browser.newContext();
    await context.addCookies(cookies);
    return Person.in(context, node);
  }

  static async in(context, node) {
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
