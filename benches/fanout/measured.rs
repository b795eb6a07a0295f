//! What the feature `metrics` adds to a delivery: one message to one socket, with the system call that writes it. The
//! two take turns of a millisecond, since what else a machine does lasts longer.

use std::hint::black_box;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Instant;

use axum_cluster::Message;
use axum_cluster::internals::FanOut;

/// What a kernel holds of a client that is read between the turns.
const ROUND: usize = 200;
const ROUNDS: usize = 5_000;

pub fn compare() {
    let message = Message::from("x".repeat(128));
    let bytes = [&[0x81, 126, 0, 128][..], &[b'x'; 128]].concat();
    let mut heard = vec![0; bytes.len() * ROUND];
    let (here, client) = loopback();
    let node = FanOut::new(ROUND, 1);
    let mut round = |deliver: fn(&FanOut, usize, &Message) -> usize| {
        let start = Instant::now();
        for room in 0..ROUND {
            assert_eq!(deliver(&node, black_box(room), &message), 1);
            (&here).write_all(&bytes).expect("the client is there");
        }
        let elapsed = start.elapsed().as_nanos() as f64 / ROUND as f64;
        node.drain();
        (&client).read_exact(&mut heard).expect("it was written");
        elapsed
    };
    let (mut plain, mut measured) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        plain.push(round(FanOut::deliver));
        measured.push(round(FanOut::deliver_measured));
    }
    let (plain, measured) = (median(plain), median(measured));
    println!("\n| | without, ns | with all that is measured, ns | ratio |\n|---|---:|---:|---:|");
    let ratio = measured / plain;
    println!("| 1 to 1, written | {plain:.0} | {measured:.0} | {ratio:.3} |");
}

fn loopback() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let client = TcpStream::connect(listener.local_addr().expect("it is bound"));
    let (here, _) = listener.accept().expect("somebody connects");
    here.set_nodelay(true).expect("it is TCP");
    (here, client.expect("somebody listens"))
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
