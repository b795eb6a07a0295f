//! The listening side: one task that pumps one connection after the other, under endless supervision. What that means is
//! decided by the rules of [`Link`]; messages are handed on as they are read.

use std::convert::Infallible;
use std::io;
use std::pin::pin;
use std::sync::{Arc, Once, Weak};

use bytes::{Buf, BytesMut};
use futures::FutureExt;
use futures::future::Fuse;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::task::yield_now;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::backoff::{Backoff, LONGEST_PAUSE};
use super::endpoint::OPENING;
use super::link::{Event, Link, LinkContext, Lost};
use super::past::{PREFIX, unnumbered};
use super::publisher::Publisher;
use super::quota::SharedLedgers;
use super::resp::{Broken, RespReader};
use super::subscriptions::Subscriptions;
use super::topology::{LEFT, Opened, Topology};
use crate::bus::Listener;
use crate::bus::outage::LinkId;
use crate::bus::wire::{MAX_ENVELOPE, STAMP};

/// Replies that are handed on before those whom they concern get their turn: half of what an outbox holds by
/// default.
const TURN: usize = 128;

/// The task that listens.
#[derive(Debug)]
pub(super) struct Subscriber {
    pub(super) link: LinkId,
    /// What the primary is called where there are several.
    pub(super) name: Option<Arc<str>>,
    pub(super) topology: Arc<Topology>,
    pub(super) context: Arc<LinkContext>,
    pub(super) publisher: Arc<Publisher>,
    pub(super) seats: Option<Arc<SharedLedgers>>,
    pub(super) listener: Weak<dyn Listener>,
    /// Said once that Redis does not tell its role.
    pub(super) told_no_role: Once,
    /// Whether the task has run before.
    pub(super) began: bool,
}

impl Subscriber {
    /// Connects, listens, and begins again, for ever.
    pub(super) async fn run(&mut self) {
        if self.began {
            // It panicked, and what it had read by then is lost.
            let reason = "the task that listens to redis panicked: please report it";
            self.tell(|listener| listener.down(self.link, self.told(reason.into()), true));
        }
        self.began = true;
        let mut backoff = Backoff::new(LONGEST_PAUSE);
        loop {
            let route = self.topology.route();
            let Err(Lost { reason, strayed }) = self.listen(&mut backoff).await;
            // What was read when another server became the primary was heard.
            self.flush().await;
            // Nobody waits for a connection that could not be made either.
            self.context.subscriptions.with(Subscriptions::disconnected);
            self.tell(|listener| {
                if strayed {
                    listener.strayed(self.link, None);
                }
                listener.down(self.link, self.told(reason), true);
            });
            self.topology.missed();
            let pause = backoff.ended(Instant::now(), fastrand::f64());
            tokio::select! {
                () = sleep(pause) => {}
                () = self.topology.left(route) => {}
            }
        }
    }

    /// One connection from its first byte to its last.
    async fn listen(&self, backoff: &mut Backoff) -> Result<Infallible, Lost> {
        let opened_until = Instant::now() + OPENING;
        let Opened { dialed, route } = self.open(opened_until).await?;
        // Of every route before this one, which a change after it ends.
        if let Some(since) = self.topology.take_astray() {
            self.tell(|listener| listener.strayed(self.link, Some(since)));
        }
        if let Some(seats) = &self.seats {
            seats.verify(&self.topology);
        }
        let auth = dialed.auth();
        let listening = self.pump(dialed.stream, auth, opened_until, backoff);
        tokio::select! {
            lost = listening => lost,
            () = self.topology.left(route), if route > 0 => Err(LEFT.into()),
        }
    }

    async fn open(&self, until: Instant) -> Result<Opened, Lost> {
        let known = self.topology.route();
        tokio::select! {
            opened = timeout_at(until, self.topology.open()) => match opened {
                Ok(Ok(opened)) => Ok(opened),
                Ok(Err(error)) => Err(broken(&error)),
                Err(_) => Err("redis did not accept a connection in time".into()),
            },
            // The old one may be frozen.
            () = self.topology.left(known), if known > 0 => Err(LEFT.into()),
        }
    }

    async fn pump(
        &self,
        stream: impl AsyncRead + AsyncWrite,
        auth: Option<BytesMut>,
        opened_until: Instant,
        backoff: &mut Backoff,
    ) -> Result<Infallible, Lost> {
        let (mut read, mut write) = tokio::io::split(stream);
        let longest = MAX_ENVELOPE + STAMP + PREFIX;
        let (mut reader, mut output) = (RespReader::new(longest), BytesMut::new());
        // TLS keeps what the kernel did not take.
        let mut unflushed = false;
        let mut publishing = pin!(Fuse::terminated());
        let mut link = Link::new(
            self.context.clone(),
            auth,
            fastrand::u64(..),
            opened_until,
            Instant::now(),
        );
        loop {
            let now = Instant::now();
            link.poll_transmit(&mut output, now);
            let event = link.handle_timeout(now)?;
            self.tell_of(event, backoff);
            if let Some(probe) = link.poll_probe() {
                publishing.set(self.publisher.probe(link.probed(), probe).fuse());
            }
            tokio::select! {
                count = read.read_buf(reader.space()) => {
                    if count.map_err(|error| broken(&error))? == 0 {
                        return Err("redis closed the connection".into());
                    }
                    self.hear(&mut reader, &mut link, backoff).await?;
                }
                written = write_or_flush(&mut write, &output), if unflushed || !output.is_empty() => {
                    let count = written.map_err(|error| broken(&error))?;
                    output.advance(count);
                    unflushed = count > 0;
                }
                took = &mut publishing => {
                    let event = link.probe_published(took, Instant::now())?;
                    self.tell_of(event, backoff);
                }
                // Whoever else is about to want something may be in the same command.
                () = self.context.subscriptions.changed() => yield_now().await,
                () = self.topology.probe_asked() => link.hurry(Instant::now()),
                () = sleep_until(link.poll_timeout()) => {}
            }
        }
    }

    /// Hands on what was read, letting other tasks run in between.
    async fn hear(
        &self,
        reader: &mut RespReader,
        link: &mut Link,
        backoff: &mut Backoff,
    ) -> Result<(), Lost> {
        loop {
            let (now, mut lost) = (Instant::now(), None);
            let listener = self.listener.upgrade();
            let read = reader.read(TURN, |reply| {
                if lost.is_some() {
                    return;
                }
                match (link.handle(reply, now), listener.as_deref()) {
                    (Ok(Some(event)), Some(listener)) => self.pass(event, listener, backoff),
                    (Ok(_), _) => {}
                    (Err(end), _) => lost = Some(end),
                }
            });
            drop(listener);
            self.flush().await;
            match (lost, read) {
                (Some(lost), _) => return Err(lost),
                (None, Ok(true)) => {}
                (None, Ok(false)) => return Ok(()),
                (None, Err(Broken)) => return Err("redis broke its own protocol".into()),
            }
        }
    }

    /// Delivers what was heard, letting other tasks run in between.
    async fn flush(&self) {
        while self
            .listener
            .upgrade()
            .is_some_and(|listener| listener.flush())
        {
            yield_now().await;
        }
    }

    /// A reason, and where there are several primaries, whose.
    fn told(&self, reason: Arc<str>) -> Arc<str> {
        match &self.name {
            Some(name) if !reason.contains(&**name) => format!("{name}: {reason}").into(),
            _ => reason,
        }
    }

    fn tell(&self, what: impl FnOnce(&dyn Listener)) {
        if let Some(listener) = self.listener.upgrade() {
            what(&*listener);
        }
    }

    fn tell_of(&self, event: Option<Event<'_>>, backoff: &mut Backoff) {
        if let Some(event) = event {
            self.tell(|listener| self.pass(event, listener, backoff));
        }
    }

    /// Passes on what the link has to tell.
    fn pass(&self, event: Event<'_>, listener: &dyn Listener, backoff: &mut Backoff) {
        match event {
            Event::Heard { topic, payload } => {
                let (number, envelope) = unnumbered(payload);
                listener.heard(topic, number, envelope);
            }
            Event::Confirmed { topic } => listener.confirmed(topic),
            Event::Superseded => listener.superseded(),
            Event::Garbage => listener.garbage(),
            Event::Up { proven } => {
                backoff.works(Instant::now());
                listener.up(self.link, proven);
            }
            Event::Works { proven } => {
                backoff.works(Instant::now());
                if let Some(proven) = proven {
                    listener.works(self.link, proven);
                }
            }
            Event::Down { reason, deaf } => listener.down(self.link, self.told(reason), deaf),
            Event::Refused { topic, reason } => {
                tracing::debug!(topic = topic.as_str(), %reason, "redis refuses a subscription: it is asked for again");
                listener.refused(self.link, topic.kind(), self.told(reason));
            }
            Event::Stranded { partition } => {
                if let Some(partition) = partition {
                    listener.stranded(self.link, partition);
                }
                self.topology.missed();
            }
            Event::Moved { topic } => {
                tracing::debug!(topic, "redis ended a subscription unasked");
            }
            Event::Greeted { untold } => self.greeted(untold.as_deref()),
        }
    }

    fn greeted(&self, untold: Option<&str>) {
        self.topology.moved();
        if let Some(words) = untold {
            self.told_no_role.call_once(|| {
                tracing::warn!(
                    words,
                    "redis does not tell its role: after a failover, make sure that \
                    the old primary is not reachable under the URL's host"
                );
            });
        }
    }
}

fn broken(error: &io::Error) -> Lost {
    error.to_string().into()
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
    use std::time::Duration;

    use tokio::io::{AsyncBufReadExt, BufReader, BufWriter};
    use tokio::net::{TcpSocket, TcpStream};
    use tokio::sync::mpsc;
    use tokio_rustls::TlsConnector;
    use tokio_rustls::rustls::crypto::ring;
    use tokio_rustls::rustls::pki_types::CertificateDer;
    use tokio_rustls::rustls::{ClientConfig, RootCertStore};
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::bus::conformance::redis_server::{self, RedisServer};
    use crate::bus::redis::address::ServerAddress;
    use crate::bus::redis::advice::Advice;
    use crate::bus::redis::channels::Channels;
    use crate::bus::redis::command::Dialect;
    use crate::bus::redis::endpoint::{Addr, Endpoint};
    use crate::bus::redis::link::{SILENCE, UNANSWERED};
    use crate::bus::redis::shared::SharedSubscriptions;
    use crate::bus::redis::supervise;
    use crate::model::history::mark::Number;
    use crate::model::id::NodeId;
    use crate::model::partition::{Partition, PartitionSet};
    use crate::model::topic::{Namespace, Topic, TopicKind};

    #[derive(Debug, PartialEq)]
    enum Told {
        Up,
        Down { deaf: bool },
        Refused,
        Strayed,
        Panicked,
    }

    /// Panics at whatever it hears, but for a probe that comes back when another has.
    struct Fragile(mpsc::UnboundedSender<Told>);

    impl Listener for Fragile {
        fn heard(&self, topic: &str, _: Option<Number>, _: &[u8]) {
            assert!(topic.starts_with("n:"), "{topic} was heard");
        }

        fn flush(&self) -> bool {
            false
        }

        fn garbage(&self) {}

        fn replaced(&self, _: u64) {}

        fn up(&self, _: LinkId, _: Instant) {
            let _ = self.0.send(Told::Up);
        }

        fn strayed(&self, _: LinkId, _: Option<Instant>) {
            let _ = self.0.send(Told::Strayed);
        }

        fn down(&self, _: LinkId, _: Arc<str>, deaf: bool) {
            let _ = self.0.send(Told::Down { deaf });
        }

        fn moved(&self, _: PartitionSet, _: (LinkId, LinkId), _: Instant) {}

        fn works(&self, _: LinkId, _: Instant) {}

        fn stranded(&self, _: LinkId, _: Partition) {}

        fn refused(&self, _: LinkId, _: TopicKind, _: Arc<str>) {
            let _ = self.0.send(Told::Refused);
        }

        fn panicked(&self) {
            let _ = self.0.send(Told::Panicked);
        }
    }

    /// A subscriber that wants `r:x`, and a publisher for its probes.
    fn subscriber(server: &RedisServer, listener: &Arc<Fragile>) -> Subscriber {
        let topology = Arc::new(Topology::at(&server.url()));
        let namespace = Namespace::new("x").unwrap();
        let advice = Arc::new(Advice::new(None, &namespace, Dialect::Plain));
        let (publisher, mut queue) = Publisher::new(topology.clone(), advice.clone(), SILENCE);
        tokio::spawn(async move { queue.run().await });
        let node = NodeId::random();
        let subscriptions =
            SharedSubscriptions::new(Subscriptions::new(SILENCE, Topic::node(node)));
        let topic = Topic::room("x").unwrap();
        subscriptions.change(|table| table.want(&topic));
        let listener: Weak<Fragile> = Arc::downgrade(listener);
        Subscriber {
            link: LinkId::ONLY,
            name: None,
            topology,
            context: Arc::new(LinkContext {
                node,
                channels: Channels::new(namespace, Dialect::Plain),
                advice,
                probe_interval: SILENCE,
                subscriptions: Arc::new(subscriptions),
            }),
            publisher: Arc::new(publisher),
            seats: None,
            listener,
            told_no_role: Once::new(),
            began: false,
        }
    }

    /// Or each cut while a room is refused would cost everybody a longer silence than the one before.
    #[tokio::test]
    async fn a_link_that_is_refused_a_topic_holds_all_the_same() {
        const PROBES: u64 = 4;
        let server = RedisServer::start();
        let narrow = ["ACL", "SETUSER", "default", "resetchannels", "&x:n:*"];
        assert_eq!(server.cli(&narrow), "OK");
        let (sender, mut told) = mpsc::unbounded_channel();
        let listener = Arc::new(Fragile(sender));
        let mut subscriber = subscriber(&server, &listener);
        Arc::get_mut(&mut subscriber.context)
            .unwrap()
            .probe_interval = Duration::from_millis(500);
        let link = TcpStream::connect(("127.0.0.1", server.port())).await;
        let mut backoff = Backoff::new(LONGEST_PAUSE);
        let first = backoff.ended(Instant::now(), 1.0);
        assert!(backoff.ended(Instant::now(), 1.0) > first, "control");
        // Two that do not come back would end it.
        let probed = async {
            while server.calls("publish") < PROBES {
                sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::select! {
            lost = subscriber.pump(link.unwrap(), None, Instant::now() + OPENING, &mut backoff) => panic!("{lost:?}"),
            () = probed => {}
        }
        assert_eq!(told.try_recv(), Ok(Told::Refused), "control");
        while let Ok(more) = told.try_recv() {
            assert_eq!(more, Told::Refused, "it is never up");
        }
        assert_eq!(backoff.ended(Instant::now() + LONGEST_PAUSE, 1.0), first);
    }

    /// It is on the new route then, and nothing would tell of the change before the next loss.
    #[tokio::test]
    async fn a_change_right_before_the_connect_is_told_before_it_is_up() {
        let server = RedisServer::start();
        let (sender, mut told) = mpsc::unbounded_channel();
        let listener = Arc::new(Fragile(sender));
        let mut subscriber = subscriber(&server, &listener);
        for _ in 0..2 {
            let host = ServerAddress::new("127.0.0.1", server.port());
            let primary = Endpoint::new(Addr::Tcp(host), Arc::default());
            subscriber.topology.lead_to(primary, Instant::now());
        }
        tokio::select! {
            () = subscriber.run() => panic!("it goes on for ever"),
            first = told.recv() => assert_eq!(first, Some(Told::Strayed)),
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
            lost = subscriber.pump(keeping, None, Instant::now() + OPENING, &mut backoff) => panic!("{lost:?}"),
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
            subscriber
                .context
                .subscriptions
                .change(|table| table.want(&topic));
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
            lost = subscriber.pump(link, None, Instant::now() + OPENING, &mut backoff) => panic!("{lost:?}"),
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
            subscriber
                .context
                .subscriptions
                .change(|table| table.want(&topic))
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
            lost = subscriber.pump(link, None, Instant::now() + OPENING, &mut backoff) => panic!("{lost:?}"),
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
