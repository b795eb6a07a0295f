//! Run with `cargo run --example worker -- alice "your order has shipped"`: a process without sockets
//! that sends to a user wherever the user is connected. REDIS_URL defaults to `redis://127.0.0.1:6379`.
//! Without arguments it sends the time to everybody once a second.

use std::time::{Duration, SystemTime};

use axum_cluster::{Broadcaster, SendError};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let redis_url = std::env::var("REDIS_URL").unwrap_or("redis://127.0.0.1:6379".into());
    let broadcaster = Broadcaster::connect(redis_url).await?;
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.as_slice() {
        [] => tell_the_time(broadcaster).await,
        [user, text] => {
            let delivery = broadcaster.to_user(user).send(text.as_str()).await?;
            println!("{} nodes took it", delivery.nodes().unwrap_or(0));
            Ok(())
        }
        _ => Err("two arguments are needed: a user and a text".into()),
    }
}

async fn tell_the_time(broadcaster: Broadcaster) -> Result<(), Box<dyn std::error::Error>> {
    let mut every = tokio::time::interval(Duration::from_secs(1));
    loop {
        every.tick().await;
        let now = humantime::format_rfc3339_seconds(SystemTime::now());
        match broadcaster.to_all().send(now.to_string()).await {
            Ok(delivery) => println!("{now}: {} nodes took it", delivery.nodes().unwrap_or(0)),
            Err(error) => report(&error),
        }
    }
}

/// A failed send is an event like any other: the next one may succeed.
fn report(error: &SendError) {
    let doubt = if error.maybe_sent() {
        "it may have been sent"
    } else {
        "it was not sent"
    };
    eprintln!("{error}; {doubt}");
}
