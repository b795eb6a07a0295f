// Chromium, with the dashboard: of two nodes, what it shows and what it does; of one and of fifty, that it holds them.

import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { after, before, suite, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { Client, PATIENCE, Program, browse, refusal, skip } from './support.mjs';

const manifest = await readFile(new URL('../../Cargo.toml', import.meta.url), 'utf8');
const [, version] = /^version = "(.*)"$/m.exec(manifest);
const picture = name => fileURLToPath(new URL(`../../target/clients/${name}.png`, import.meta.url));

suite('the dashboard', { skip, timeout: 4 * PATIENCE }, () => {
  let browser, redis, nodes, light, dark;
  before(async () => {
    browser = await browse();
    redis = await Program.redis();
    const args = ['--nodes', 1, '--users', 0];
    nodes = [];
    for (const _ of [1, 2]) {
      nodes.push(await Program.example('dashboard', { REDIS_URL: redis.redisUrl }, undefined, args));
    }
    [light, dark] = [await Operator.at(browser, nodes[0], 'light'), await Operator.at(browser, nodes[1], 'dark')];
  });
  after(() => browser?.close());

  test('who is no operator sees nothing', async () => {
    for (const path of ['', '/live', '/devices?user=alice']) {
      assert.equal((await fetch(`${nodes[0].page}admin/cluster${path}`)).status, 401);
    }
  });

  test('both nodes are shown at both, in light and in dark', async () => {
    for (const { page } of [light, dark]) {
      await page.getByText('2 nodes up').waitFor();
      assert.equal(await page.locator('#nodes tr').count(), 2);
      const column = await page.locator('#columns th').evaluateAll(all => all.findIndex(one => one.textContent === 'Version'));
      const versions = await page.locator('#nodes tr').evaluateAll((all, at) => all.map(row => row.cells[at].textContent), column);
      assert.deepEqual(versions, [version, version]);
    }
    const ground = ({ page }) => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
    const [day, night] = [await ground(light), await ground(dark)];
    assert.notEqual(day, night);
  });

  let phone, laptop;
  test('numbers of both nodes change as it happens', async () => {
    const places = await light.places();
    await light.value('Sockets', '0');
    [phone, laptop] = [await Client.open(`${nodes[0].url}?user=alice`), await Client.open(`${nodes[1].url}?user=alice`)];
    for (const operator of [light, dark]) await operator.value('Sockets', '2');
    const talking = setInterval(() => phone.socket.send('hello'), 50);
    for (const operator of [light, dark]) {
      await operator.page.waitForFunction(() => parseFloat(document.querySelectorAll('.value')[1].textContent) > 10);
      await operator.page.waitForFunction(() => parseFloat(document.querySelectorAll('.value')[2].textContent) > 0);
    }
    for (const operator of [light, dark]) await operator.drawn('Round trip to other nodes');
    clearInterval(talking);
    const lines = await light.page.locator('.plot polyline').evaluateAll(all => all.map(one => one.getAttribute('points').length));
    assert.ok(lines[0] > 20 && lines[1] > 20, 'they are drawn');
    assert.deepEqual(await light.places(), places, 'nothing jumps');
  });

  test('a user is found with her devices, by the keyboard alone', async () => {
    await light.find('alice');
    await light.page.getByText('alice: 2 sockets on 2 nodes').waitFor();
    const text = await light.page.locator('#devices').innerText();
    assert.match(text, /\{"device":"browser"\}, in lobby, expires in (1 h 0|59) m/);
  });

  test('one socket is closed, after a question that may be declined', async () => {
    const row = light.page.locator('#devices tr').nth(1);
    await row.getByRole('button', { name: 'Close' }).press('Enter');
    await light.page.keyboard.press('Escape');
    await row.getByRole('button', { name: 'Close' }).press('Enter');
    await light.page.locator('dialog').getByRole('button', { name: 'Close' }).press('Enter');
    assert.deepEqual(await laptop.closed, [4001, 'closed by an operator']);
    await light.page.getByText('alice: 1 socket on 1 node').waitFor();
    phone.socket.send('still here');
    await phone.next();
    await light.page.getByRole('button', { name: 'Close all' }).click();
    await light.page.locator('dialog').getByRole('button', { name: 'Close' }).click();
    assert.deepEqual(await phone.closed, [4001, 'closed by an operator']);
    await light.page.getByText('alice has no socket').waitFor();
  });

  test('what others wrote is never markup', async () => {
    const name = '<img src=x onerror="hacked = true"><script>hacked = true</script>';
    await Client.open(`${nodes[1].url}?user=${encodeURIComponent(name)}`);
    await light.find(name);
    await light.page.getByText(`${name}: 1 socket on 1 node`).waitFor();
    assert.equal(await light.page.locator('img').count(), 0);
    assert.equal(await light.page.evaluate(() => typeof hacked), 'undefined');
  });

  test('refusals come as they happen', async () => {
    await refusal(nodes[1].url, { origin: 'https://evil.example' });
    await refusal(nodes[1].url, { origin: 'https://evil.example' });
    const refused = /upgrades? refused: a page of another origin/;
    for (const operator of [light, dark]) await operator.page.getByText(refused).waitFor();
    for (const { page, scheme } of [light, dark]) await page.screenshot({ path: picture(`dashboard-${scheme}`), fullPage: true });
  });

  test('a node that hangs is silent, and hides no other; then it answers again', async () => {
    const places = await light.places();
    nodes[1].child.kill('SIGSTOP');
    await light.page.getByText('1 of 2 nodes not up').waitFor();
    await light.page.locator('#nodes').getByText(/silent \d+ s/).waitFor();
    await light.page.getByText('does not answer').waitFor();
    await Client.open(`${nodes[0].url}?user=bob`);
    await light.value('Sockets', '1');
    await light.page.screenshot({ path: picture('dashboard-trouble'), fullPage: true });
    assert.deepEqual(await light.places(), places, 'nothing jumps');
    nodes[1].child.kill('SIGCONT');
    await light.page.getByText('answers again').waitFor();
    await light.page.getByText('2 nodes up').waitFor();
  });

  test('a gap comes as it happens', async () => {
    const gap = /^gap of [\d.]+ s: messages of other nodes may have been missed$/;
    for (const { page } of [light, dark]) assert.equal(await page.getByText(gap).count(), 0, 'control');
    await redis.end('SIGKILL');
    for (const { page } of [light, dark]) {
      await page.getByText('which serves this page, is degraded').waitFor();
      await page.locator('#events').getByText('a gap begins').waitFor();
      assert.equal(await page.getByText(gap).count(), 0, 'it is not over');
    }
    await redis.start();
    for (const { page } of [light, dark]) {
      await page.locator('#events').getByText(gap).nth(1).waitFor();
      await page.getByText('2 nodes up').waitFor();
      assert.equal(await page.locator('#events').getByText(gap).count(), 2, 'one of each node');
    }
    await light.page.screenshot({ path: picture('dashboard-gap'), fullPage: true });
  });

  test('a node says all its numbers', async () => {
    await light.page.locator('#nodes button').first().click();
    await light.page.locator('#detail').getByText('bus_shards', { exact: true }).waitFor();
    await light.page.keyboard.press('Escape');
  });

  test('a page comes back by itself when its node does', async () => {
    await dark.page.getByText('live, seen from').waitFor();
    await nodes[1].end('SIGKILL');
    await dark.page.getByText('connection lost').waitFor();
    await light.page.locator('#nodes').getByText(/silent|left/).first().waitFor();
    await nodes[1].start();
    await dark.page.getByText('live, seen from').waitFor();
  });

  test('nothing was refused by the policy of the page, and nothing went wrong in it', () => {
    for (const { complaints } of [light, dark]) {
      assert.deepEqual(complaints.filter(text => !text.includes('net::ERR')), []);
    }
  });
});

test('where no actions are allowed there are no buttons, and none is carried out', { skip, timeout: 2 * PATIENCE }, async () => {
  const args = ['--nodes', 1, '--users', 0, '--actions', 0];
  const [browser, node] = [await browse(), await Program.example('dashboard', {}, undefined, args)];
  try {
    const operator = await Operator.at(browser, node, 'light'), { page } = operator;
    await page.getByText('live, seen from').waitFor();
    const alice = await Client.open(`${node.url}?user=alice`);
    await operator.find('alice');
    await page.getByText('alice: 1 socket on 1 node').waitFor();
    assert.equal(await page.locator('#devices tr').count(), 1, 'control');
    assert.equal(await page.locator('#below').getByRole('button', { name: 'Close' }).count(), 0);
    const close = async () => {
      const answer = await fetch('/admin/cluster/close?user=alice', { method: 'POST' });
      return [answer.status, await answer.text()];
    };
    const [status, why] = await page.evaluate(close);
    assert.equal(status, 403);
    assert.match(why, /allow_actions/);
    await page.getByText('1 action at a dashboard refused').waitFor();
    alice.socket.send('still here');
    assert.equal(await alice.next(), 'still here');
  } finally {
    await browser.close();
  }
});

const ONE = [1, '1 node up', 'there is no other node'], FIFTY = [50, '50 nodes up', /slowest [\d.,]+/];
for (const [scheme, [count, up, trip]] of [['light', ONE], ['light', FIFTY], ['dark', FIFTY]]) {
  test(`a cluster of ${count} is shown whole, ${scheme}`, { skip, timeout: 2 * PATIENCE }, async () => {
    const args = ['--nodes', count, '--users', 20];
    const [browser, cluster] = [await browse(), await Program.example('dashboard', {}, undefined, args)];
    try {
      const operator = await Operator.at(browser, cluster, scheme), { page } = operator;
      await page.getByText(up, { exact: true }).waitFor();
      const places = await operator.places();
      for (const title of ['Sockets', 'Delivered']) await operator.drawn(title);
      await page.getByRole('region', { name: 'Round trip to other nodes' }).getByText(trip).waitFor();
      if (count > 1) await operator.drawn('Round trip to other nodes');
      // Its users come one after the other.
      await page.waitForFunction(() => parseFloat(document.querySelector('.value').textContent) > 0);
      assert.equal(await page.locator('#nodes tr').count(), count);
      assert.equal(await page.locator('#nodes .good').count(), count, 'each is up');
      assert.deepEqual(await operator.places(), places, 'nothing jumps');
      assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), 'nothing is beside the page');
      await page.screenshot({ path: picture(`dashboard-${count}-${scheme}`), fullPage: true });
      assert.deepEqual(operator.complaints, []);
    } finally {
      await browser.close();
    }
  });
}

/** Somebody who looks. */
class Operator {
  complaints = [];

  static async at(browser, node, scheme) {
    const context = await browser.newContext({
      colorScheme: scheme, viewport: { width: 1400, height: 900 }, httpCredentials: { username: 'ops', password: 'secret' },
    });
    context.setDefaultTimeout(PATIENCE);
    const operator = new Operator(await context.newPage(), scheme);
    await operator.page.goto(`${node.page}admin/cluster`);
    return operator;
  }

  constructor(page, scheme) {
    Object.assign(this, { page, scheme });
    page.on('console', message => message.type() === 'error' && this.complaints.push(message.text()));
    page.on('pageerror', error => this.complaints.push(error.message));
  }

  /** Waits until a chart shows it. */
  value(title, value) {
    return this.page.getByRole('region', { name: title }).locator('.value').getByText(new RegExp(`^${value}\\s*$`)).waitFor();
  }

  /** Waits until the first line of a chart has two points. */
  drawn(title) {
    const is_drawn = title => document.querySelector(`[aria-label="${title}"] svg`).lastChild.getAttribute('points')?.includes(' ');
    return this.page.waitForFunction(is_drawn, title);
  }

  async find(user) {
    await this.page.evaluate(() => document.activeElement.blur());
    await this.page.keyboard.press('/');
    await this.page.keyboard.type(user);
    await this.page.keyboard.press('Enter');
  }

  /** Where everything is. */
  places() {
    return this.page.locator('section').evaluateAll(all => all.map(one => JSON.stringify(one.getBoundingClientRect())));
  }
}
