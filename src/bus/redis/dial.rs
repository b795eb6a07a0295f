//! Dialing: a name may lead to several addresses, and some of them nowhere. They are raced as RFC 8305 says,
//! so that an address which swallows everything costs a quarter of a second.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

/// So long an address is tried alone before the next is tried beside it (RFC 8305, section 5).
const HEAD_START: Duration = Duration::from_millis(250);

/// Connects to whichever address of the host answers first. The name is resolved at every call, since it may
/// lead elsewhere by now. Waits for ever: the caller has the deadline.
pub(super) async fn dial(host: &str, port: u16) -> io::Result<TcpStream> {
    let addresses = lookup_host((host, port)).await;
    let addresses = addresses.map_err(|error| {
        let named = format!("no address of `{host}` is known: {error}");
        io::Error::new(error.kind(), named)
    })?;
    connect(addresses.collect()).await
}

async fn connect(addresses: Vec<SocketAddr>) -> io::Result<TcpStream> {
    race(interleaved(addresses), HEAD_START, TcpStream::connect).await
}

/// Both families in turn, beginning with the one that the resolver prefers (RFC 8305, section 4).
fn interleaved(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let count = addresses.len();
    let preferred = addresses.first().is_some_and(SocketAddr::is_ipv4);
    let (first, second): (Vec<_>, Vec<_>) = addresses
        .into_iter()
        .partition(|address| address.is_ipv4() == preferred);
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    let mut order = Vec::with_capacity(count);
    while order.len() < count {
        order.extend(first.next());
        order.extend(second.next());
    }
    order
}

/// The first connection that stands. The next attempt begins when the one before fails, or has had its head
/// start; those that lost are dropped. If all fail, the last failure.
async fn race<T, F: Future<Output = io::Result<T>>>(
    addresses: Vec<SocketAddr>,
    head_start: Duration,
    connect: impl Fn(SocketAddr) -> F,
) -> io::Result<T> {
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    let mut attempts = FuturesUnordered::new();
    let mut waiting = addresses.into_iter();
    loop {
        attempts.extend(waiting.next().map(&connect));
        let ended = if waiting.len() == 0 {
            attempts.next().await
        } else {
            match timeout(head_start, attempts.next()).await {
                Ok(ended) => ended,
                Err(_) => continue,
            }
        };
        match ended {
            Some(Ok(connected)) => return Ok(connected),
            Some(Err(error)) => failure = error,
            None => return Err(failure),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use futures::FutureExt;
    use proptest::prelude::*;
    use tokio::net::{TcpListener, TcpSocket};
    use tokio::sync::watch;

    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const NEVER: Duration = Duration::from_secs(3600);
    const PATIENCE: Duration = Duration::from_secs(20);

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    /// What an address does.
    #[derive(Clone, Copy)]
    enum Fate {
        Accepts,
        /// As soon as another one is tried.
        AcceptsLate,
        Refuses,
        Swallows,
    }

    use Fate::{Accepts, AcceptsLate, Refuses, Swallows};

    /// Races addresses of these fates; the winner or the failed, and how many were tried.
    async fn raced(fates: &[Fate], head_start: Duration) -> (Result<u16, String>, u32) {
        let tried = watch::Sender::new(0);
        let addresses = (0..fates.len() as u16).map(|n| ([127, 0, 0, 1], n).into());
        let connect = |address: SocketAddr| {
            tried.send_modify(|tried| *tried += 1);
            let (number, mut tries) = (address.port(), tried.subscribe());
            let (fate, before) = (fates[usize::from(number)], *tries.borrow());
            async move {
                match fate {
                    Accepts => Ok(number),
                    AcceptsLate => {
                        let later = tries.wait_for(|tried| *tried > before).await;
                        Ok(later.map(|_| number).unwrap())
                    }
                    Refuses => Err(io::Error::other(number.to_string())),
                    Swallows => pending().await,
                }
            }
        };
        let end = race(addresses.collect(), head_start, connect).await;
        let tried = *tried.borrow();
        (end.map_err(|error| error.to_string()), tried)
    }

    #[tokio::test]
    async fn whichever_address_answers_first_is_taken() {
        let none = || Err("the host has no address".to_owned());
        for (fates, head_start, end, tried) in [
            (&[Accepts, Accepts][..], NEVER, Ok(0), 1),
            (&[Refuses, Accepts], NEVER, Ok(1), 2),
            (&[Refuses, Refuses], NEVER, Err("1".to_owned()), 2),
            (&[Swallows, Accepts], MS, Ok(1), 2),
            (&[Swallows, Swallows, Accepts], MS, Ok(2), 3),
            (&[Swallows, Refuses, Accepts], MS, Ok(2), 3),
            (&[AcceptsLate, Swallows], MS, Ok(0), 2),
            (&[AcceptsLate, Refuses], MS, Ok(0), 2),
            (&[], NEVER, none(), 0),
        ] {
            let raced = timeout(PATIENCE, raced(fates, head_start)).await;
            assert_eq!(raced.unwrap(), (end, tried));
        }
        let alone = timeout(50 * MS, raced(&[Swallows, Accepts], NEVER)).await;
        assert!(alone.is_err(), "control: the second has to wait");
    }

    #[tokio::test]
    async fn a_real_address_that_swallows_is_passed_over() {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(address("127.0.0.1:0")).unwrap();
        let full = socket.listen(1).unwrap();
        let mut held = Vec::new();
        // As many as its backlog takes, which nobody empties.
        while let Ok(taken) =
            timeout(100 * MS, TcpStream::connect(full.local_addr().unwrap())).await
        {
            held.push(taken.unwrap());
        }
        let mut swallowed = Box::pin(TcpStream::connect(full.local_addr().unwrap()));
        assert!(
            timeout(100 * MS, swallowed.as_mut()).await.is_err(),
            "control: it neither accepts nor refuses"
        );
        let good = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addresses = vec![full.local_addr().unwrap(), good.local_addr().unwrap()];
        let won = connect(addresses).await.unwrap();
        assert_eq!(won.peer_addr().unwrap(), good.local_addr().unwrap());
        assert!(swallowed.now_or_never().is_none(), "control: it still does");
    }

    #[tokio::test]
    async fn a_host_that_is_not_known_is_named() {
        // Too long for anybody to be asked.
        let host = "x".repeat(64);
        let error = dial(&host, 1).await.unwrap_err().to_string();
        assert!(error.contains(&host), "{error}");
    }

    #[test]
    fn families_take_turns() {
        let (a, b, c) = (
            address("10.0.0.1:1"),
            address("10.0.0.2:1"),
            address("10.0.0.3:1"),
        );
        let (x, y) = (address("[::1]:1"), address("[::2]:1"));
        assert_eq!(interleaved(vec![x, y, a, b, c]), [x, a, y, b, c]);
        assert_eq!(interleaved(vec![a, b, c, x]), [a, x, b, c]);
        assert_eq!(interleaved(vec![a, b]), [a, b]);
        assert_eq!(interleaved(vec![]), []);
    }

    proptest! {
        #[test]
        fn none_is_lost_and_each_family_keeps_its_order(kinds: Vec<bool>) {
            let addresses: Vec<SocketAddr> = kinds.iter().enumerate().map(|(n, v4)| match v4 {
                true => ([127, 0, 0, 1], n as u16).into(),
                false => ([0; 16], n as u16).into(),
            }).collect();
            let order = interleaved(addresses.clone());
            prop_assert_eq!(order.first(), addresses.first());
            for v4 in [true, false] {
                let of = |list: &[SocketAddr]| -> Vec<SocketAddr> {
                    list.iter().copied().filter(|address| address.is_ipv4() == v4).collect()
                };
                prop_assert_eq!(of(&order), of(&addresses));
            }
        }
    }
}
