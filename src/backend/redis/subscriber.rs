//! The listening side: one connection under endless supervision, messages handed on as they are read.

use std::io;
use std::sync::{Arc, Once, Weak};
use std::time::Duration;

use bytes::Buf;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::advice::Advice;
use super::backoff::{Backoff, LONGEST_PAUSE};
use super::endpoint::{Endpoint, OPENING};
use super::publisher::Publisher;
use super::resp::Reader;
use super::session::Session;
use super::slots::SlotTable;
use super::subscriptions::Subscriptions;
use crate::backend::{BusSettings, Listener};
use crate::id::NodeId;
use crate::outage::LinkId;
use crate::topic::Topic;
use crate::wire::MAX_ENVELOPE;

/// The subscriptions, shared by those who want and the task that subscribes.
#[derive(Debug)]
pub(crate) struct Table {
    subscriptions: Mutex<Subscriptions>,
    changed: Notify,
    doubted: Notify,
}

impl Table {
    pub(crate) fn new(linger: Duration) -> Self {
        Self {
            subscriptions: Mutex::new(Subscriptions::new(linger)),
            changed: Notify::new(),
            doubted: Notify::new(),
        }
    }

    /// Changes what is wanted.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut Subscriptions) -> T) -> T {
        let changed = self.with(change);
        self.changed.notify_one();
        changed
    }

    /// Looks at the subscriptions, or notes what became of them; whoever waits is told afterwards.
    pub(super) fn with<T>(&self, look: impl FnOnce(&mut Subscriptions) -> T) -> T {
        let mut subscriptions = self.subscriptions.lock();
        let seen = look(&mut subscriptions);
        let news = subscriptions.take_news();
        drop(subscriptions);
        news.tell();
        seen
    }

    /// A publish failed: find out soon whether the bus works at all.
    pub(crate) fn doubt(&self) {
        self.doubted.notify_one();
    }

    pub(crate) fn is_confirmed(&self, topic: &Topic) -> bool {
        self.subscriptions.lock().is_confirmed(topic)
    }
}

/// Marks the connection lost however it ends, by a panic too.
struct Connected<'a>(&'a Table);

impl<'a> Connected<'a> {
    fn new(table: &'a Table) -> Self {
        table.with(Subscriptions::connected);
        Self(table)
    }
}

impl Drop for Connected<'_> {
    fn drop(&mut self) {
        self.0.with(Subscriptions::disconnected);
    }
}

/// The task that listens.
#[derive(Debug)]
pub(crate) struct Subscriber {
    pub(crate) endpoint: Arc<Endpoint>,
    pub(crate) advice: Arc<Advice>,
    pub(crate) node: NodeId,
    pub(crate) settings: BusSettings,
    pub(crate) table: Arc<Table>,
    pub(crate) publisher: Arc<Publisher>,
    pub(super) slots: Option<Arc<SlotTable>>,
    pub(crate) listener: Weak<dyn Listener>,
    /// Said once that Redis does not tell its role.
    pub(crate) told_no_role: Once,
    /// Whether it has run before.
    pub(crate) began: bool,
}

impl Subscriber {
    /// Connects, listens, and begins again, for ever.
    pub(crate) async fn run(&mut self) {
        if self.began {
            // It panicked, and what it had read by then is lost.
            let reason = "the task that listens to redis panicked: please report it";
            self.tell(|listener| listener.down(LinkId::ONLY, reason.into(), true));
        }
        self.began = true;
        let mut backoff = Backoff::new(LONGEST_PAUSE);
        loop {
            let reason = self.listen(&mut backoff).await;
            self.table.with(Subscriptions::disconnected);
            self.tell(|listener| listener.down(LinkId::ONLY, reason, true));
            sleep(backoff.ended(Instant::now(), fastrand::f64())).await;
        }
    }

    /// One connection from its first byte to its last; returns why it ended.
    async fn listen(&self, backoff: &mut Backoff) -> Arc<str> {
        let opened_until = Instant::now() + OPENING;
        let stream = match timeout_at(opened_until, self.endpoint.connect()).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return error.to_string().into(),
            Err(_) => return "redis did not accept a connection in time".into(),
        };
        if let Some(slots) = &self.slots {
            slots.doubt();
        }
        self.converse(stream, opened_until, backoff).await
    }

    async fn converse(
        &self,
        stream: impl AsyncRead + AsyncWrite,
        opened_until: Instant,
        backoff: &mut Backoff,
    ) -> Arc<str> {
        let (mut read, mut write) = tokio::io::split(stream);
        // TLS keeps what the kernel did not take.
        let mut unflushed = false;
        let _connected = Connected::new(&self.table);
        let mut session = Session::new(self, opened_until, backoff);
        let mut reader = Reader::new(MAX_ENVELOPE);
        loop {
            let wake = match session.advance(Instant::now()) {
                Ok(wake) => wake,
                Err(reason) => return reason,
            };
            let Session {
                output, publishing, ..
            } = &mut session;
            tokio::select! {
                count = read.read_buf(reader.space()) => match count {
                    Ok(0) => return "redis closed the connection".into(),
                    Ok(_) => loop {
                        let read = session.read(&mut reader);
                        self.settle().await;
                        match read {
                            Ok(true) => {}
                            Ok(false) => break,
                            Err(reason) => return reason,
                        }
                    },
                    Err(error) => return error.to_string().into(),
                },
                written = write_or_flush(&mut write, output), if unflushed || !output.is_empty() => match written {
                    Ok(count) => {
                        output.advance(count);
                        unflushed = count > 0;
                    }
                    Err(error) => return error.to_string().into(),
                },
                published = async { publishing.as_mut().expect("checked").await }, if publishing.is_some() => {
                    if let Err(reason) = session.published(published) { return reason }
                }
                () = self.table.changed.notified() => {}
                () = self.table.doubted.notified() => session.hurry(),
                () = sleep_until(wake) => {}
            }
        }
    }

    /// Delivers what was heard, letting other tasks run in between.
    async fn settle(&self) {
        while self
            .listener
            .upgrade()
            .is_some_and(|listener| listener.settle())
        {
            yield_now().await;
        }
    }

    pub(super) fn tell(&self, what: impl FnOnce(&dyn Listener)) {
        if let Some(listener) = self.listener.upgrade() {
            what(&*listener);
        }
    }
}

/// Returns how much was written: nothing only when everything has left.
async fn write_or_flush(
    stream: &mut (impl AsyncWrite + Unpin),
    output: &[u8],
) -> io::Result<usize> {
    if output.is_empty() {
        return stream.flush().await.map(|()| 0);
    }
    stream.write(output).await
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Wake, Waker};

    use futures::FutureExt;
    use tokio::io::{AsyncBufReadExt, BufReader, BufWriter};
    use tokio::net::{TcpSocket, TcpStream};
    use tokio::sync::mpsc;
    use tokio_rustls::TlsConnector;
    use tokio_rustls::rustls::crypto::ring;
    use tokio_rustls::rustls::pki_types::CertificateDer;
    use tokio_rustls::rustls::{ClientConfig, RootCertStore};
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::backend::Confirmation;
    use crate::backend::conformance::redis_server::{self, RedisServer};
    use crate::backend::redis::session::{SILENCE, UNANSWERED};
    use crate::backend::redis::supervise;
    use crate::topic::Namespace;

    #[derive(Debug, PartialEq)]
    enum Told {
        Up,
        Down { deaf: bool },
        Panicked,
    }

    /// Panics at whatever it hears.
    struct Fragile(mpsc::UnboundedSender<Told>);

    impl Listener for Fragile {
        fn heard(&self, topic: &str, _: &[u8]) {
            panic!("{topic} was heard");
        }

        fn settle(&self) -> bool {
            false
        }

        fn garbage(&self) {}

        fn replaced(&self, _: u64) {}

        fn up(&self, _: LinkId, _: Instant) {
            let _ = self.0.send(Told::Up);
        }

        fn strayed(&self, _: LinkId) {}

        fn down(&self, _: LinkId, _: Arc<str>, deaf: bool) {
            let _ = self.0.send(Told::Down { deaf });
        }

        fn panicked(&self) {
            let _ = self.0.send(Told::Panicked);
        }
    }

    /// A subscriber that wants `r:x`, and a publisher for its probes.
    fn subscriber(server: &RedisServer, listener: &Arc<Fragile>) -> Subscriber {
        let settings = BusSettings {
            namespace: Namespace::new("x").unwrap(),
            publish_timeout: SILENCE,
            probe_interval: SILENCE,
            lease: SILENCE,
            linger: SILENCE,
            slots: None,
        };
        let endpoint = Arc::new(Endpoint::parse(&server.url()).unwrap());
        let advice = Arc::new(Advice::new(None, &settings.namespace));
        let (publisher, mut queue) = Publisher::new(endpoint.clone(), advice.clone(), SILENCE);
        tokio::spawn(async move { queue.run().await });
        let (node, table) = (NodeId::random(), Table::new(SILENCE));
        for topic in [Topic::node(node), Topic::room("x").unwrap()] {
            table.change(|table| table.want(&topic));
        }
        let listener: Weak<Fragile> = Arc::downgrade(listener);
        Subscriber {
            endpoint,
            advice,
            node,
            settings,
            table: Arc::new(table),
            publisher: Arc::new(publisher),
            slots: None,
            listener,
            told_no_role: Once::new(),
            began: false,
        }
    }

    /// Comes back to the table when it is woken.
    struct Reentrant(Arc<Table>, std::sync::mpsc::Sender<()>);

    impl Wake for Reentrant {
        fn wake(self: Arc<Self>) {
            self.0.with(|_| {});
            let _ = self.1.send(());
        }
    }

    #[test]
    fn a_waker_may_come_back() {
        let steps: [fn(&Table, &Topic); 3] = [
            |table, topic| table.change(|table| table.release(topic, Instant::now())),
            |table, topic| {
                table.with(|table| table.step(Instant::now(), 1));
                table.with(|table| table.answered(topic.as_str()));
            },
            |table, _| table.with(Subscriptions::disconnected),
        ];
        for (n, step) in steps.into_iter().enumerate() {
            let (woken, wakes) = std::sync::mpsc::channel();
            std::thread::spawn(move || {
                let table = Arc::new(Table::new(SILENCE));
                let topic = Topic::room("x").unwrap();
                table.with(Subscriptions::connected);
                let Confirmation::Pending(mut confirmed) = table.change(|table| table.want(&topic))
                else {
                    panic!("nothing is confirmed yet")
                };
                let waker = Waker::from(Arc::new(Reentrant(table.clone(), woken)));
                let mut cx = Context::from_waker(&waker);
                assert!(confirmed.poll_unpin(&mut cx).is_pending());
                step(&table, &topic);
            });
            let woken = wakes.recv_timeout(Duration::from_secs(10));
            assert_eq!(woken, Ok(()), "step {n}");
        }
    }

    /// As TLS does when the kernel's buffer is full, and without a kernel's help.
    #[tokio::test]
    async fn what_a_stream_keeps_is_flushed() {
        let server = RedisServer::start();
        let (sender, mut told) = mpsc::unbounded_channel();
        let listener = Arc::new(Fragile(sender));
        let subscriber = subscriber(&server, &listener);
        let link = TcpStream::connect(("127.0.0.1", server.port())).await;
        let keeping = BufWriter::new(link.unwrap());
        let mut backoff = Backoff::new(LONGEST_PAUSE);
        tokio::select! {
            reason = subscriber.converse(keeping, Instant::now() + OPENING, &mut backoff) => panic!("{reason}"),
            first = told.recv() => assert_eq!(first, Some(Told::Up)),
        }
    }

    /// With real TLS, over a link narrower than one batch of subscriptions.
    #[tokio::test]
    async fn thousands_of_subscriptions_return_over_a_narrow_link_with_tls() {
        let (server, certificate, port) = tls_server();
        let (sender, mut told) = mpsc::unbounded_channel();
        let listener = Arc::new(Fragile(sender));
        let subscriber = subscriber(&server, &listener);
        for n in 0..5000 {
            let topic = Topic::room(&format!("a-room-with-a-rather-long-name-{n}")).unwrap();
            subscriber.table.change(|table| table.want(&topic));
        }
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_send_buffer_size(4096).unwrap();
        let link = socket.connect(([127, 0, 0, 1], port).into()).await;
        let mut roots = RootCertStore::empty();
        roots.add(certificate).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let connector = TlsConnector::from(Arc::new(config));
        let name = "localhost".try_into().unwrap();
        let link = connector.connect(name, link.unwrap()).await.unwrap();
        let mut backoff = Backoff::new(LONGEST_PAUSE);
        let restored = async {
            assert_eq!(told.recv().await, Some(Told::Up));
            let channels = server.cli(&["PUBSUB", "CHANNELS", "x:r:a-room*"]);
            assert_eq!(channels.lines().count(), 5000);
        };
        tokio::select! {
            reason = subscriber.converse(link, Instant::now() + OPENING, &mut backoff) => panic!("{reason}"),
            () = restored => {}
        }
    }

    #[tokio::test]
    async fn who_comes_during_a_restore_waits_behind_a_few_batches_only() {
        let server = RedisServer::start();
        let (sender, _told) = mpsc::unbounded_channel();
        let listener = Arc::new(Fragile(sender));
        let subscriber = subscriber(&server, &listener);
        let want = |room: &str| {
            let topic = Topic::room(room).unwrap();
            subscriber.table.change(|table| table.want(&topic))
        };
        for n in 0..2 * UNANSWERED {
            want(&n.to_string());
        }
        let (link, redis) = tokio::io::duplex(1024 * 1024);
        let mut backoff = Backoff::new(LONGEST_PAUSE);
        let serving = async {
            let (said, mut answers) = tokio::io::split(redis);
            let hello = b"-ERR unknown command\r\n";
            answers.write_all(hello).await.unwrap();
            let mut lines = BufReader::new(said).lines();
            let mut next_channel = async || loop {
                let line = lines.next_line().await.unwrap().unwrap();
                if line.starts_with("x:") {
                    return line;
                }
            };
            let mut unanswered = Vec::new();
            while unanswered.len() < UNANSWERED {
                unanswered.push(next_channel().await);
            }
            want("newcomer");
            for channel in unanswered {
                let length = channel.len();
                let answer = format!("*3\r\n$9\r\nsubscribe\r\n${length}\r\n{channel}\r\n:1\r\n");
                answers.write_all(answer.as_bytes()).await.unwrap();
            }
            assert_eq!(next_channel().await, "x:r:newcomer");
        };
        tokio::select! {
            reason = subscriber.converse(link, Instant::now() + OPENING, &mut backoff) => panic!("{reason}"),
            () = serving => {}
        }
    }

    /// A server that speaks TLS on another port, and its certificate.
    fn tls_server() -> (RedisServer, CertificateDer<'static>, u16) {
        let rcgen::CertifiedKey { cert, signing_key } =
            rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let port = redis_server::free_port();
        let file = |kind: &str, pem: String| {
            let path = std::env::temp_dir().join(format!("subscriber-{port}.{kind}"));
            std::fs::write(&path, pem).unwrap();
            path
        };
        let (cert_file, key_file) = (
            file("pem", cert.pem()),
            file("key", signing_key.serialize_pem()),
        );
        let server = RedisServer::with_options(&[
            "--tls-port",
            &port.to_string(),
            "--tls-auth-clients",
            "no",
            "--tls-cert-file",
            &cert_file.display().to_string(),
            "--tls-key-file",
            &key_file.display().to_string(),
            "--tls-ca-cert-file",
            &cert_file.display().to_string(),
        ]);
        // It has read them.
        for path in [cert_file, key_file] {
            std::fs::remove_file(path).unwrap();
        }
        (server, cert.der().clone(), port)
    }

    #[tokio::test]
    async fn what_is_lost_in_a_panic_is_a_gap() {
        let server = RedisServer::start();
        let (sender, mut told) = mpsc::unbounded_channel();
        let listener = Arc::new(Fragile(sender));
        let subscriber = subscriber(&server, &listener);
        let ended = CancellationToken::new();
        let told_of_panics = subscriber.listener.clone();
        let running = supervise("it", ended.clone(), told_of_panics, subscriber, |task| {
            task.run().boxed()
        });
        tokio::spawn(running);
        assert_eq!(told.recv().await, Some(Told::Up));
        assert_eq!(server.cli(&["PUBLISH", "x:r:x", "hello"]), "1");
        assert_eq!(told.recv().await, Some(Told::Panicked));
        assert_eq!(told.recv().await, Some(Told::Down { deaf: true }));
        assert_eq!(told.recv().await, Some(Told::Up));
        ended.cancel();
    }
}
