// What an app in TypeScript writes: checked by `tsc`, never run.

import { connect, type About, type Connection, type Status } from '../../examples/client/cluster.js';

const text = (data: string | Uint8Array): string => (typeof data === 'string' ? data : new TextDecoder().decode(data));

const connection: Connection = connect('/ws', {
  onmessage: data => console.log(text(data)),
  onopen: () => { connection.send('hello'); },
  onclose: async (code, reason) => (code === 4401 ? (await fetch('/renew')).ok : console.log(reason)),
  onstatus: (status: Status, { pause }: About) => console.log(status, pause?.toFixed()),
  onmissed: reason => console.log(reason.length),
  protocols: () => ['bearer', 'token'],
  since: '', events: new URL('https://shop.example/events'),
  first: 500, bound: 30_000, held: 10_000, opening: 5_000,
  WebSocket: class {},
});

const sent: boolean = connection.send(new Uint8Array([1]));
console.log(sent, connection.position.length);
connection.reconnect();
connection.close(4000, 'enough');

// @ts-expect-error: nothing would hear it
connect('/ws', {});
// @ts-expect-error: what is no message
connection.send({ text: 'hello' });
// @ts-expect-error: only the module says where it stands
connection.status = 'open';
// @ts-expect-error: no such status
if (connection.status === 'closed') connection.reconnect();
connect('/ws', { onmessage() {} });
