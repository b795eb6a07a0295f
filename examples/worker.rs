//! Run with `cargo run -p examples --example worker -- alice "your order has shipped"`: a process without sockets
//! that reaches a user at whichever node the user is. REDIS_URL defaults to `redis://127.0.0.1:6379`,
//! NAMESPACE to `cluster`: both must be the app's, else it says `0 nodes` for a user who is online.
//! Without arguments it counts, once a second, for everybody in the room `news`. With the `chat` example
//! on the same Redis, its pages show what the worker says.

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use axum_cluster::{Audience, Broadcaster, SendError};

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match work(&arguments).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn work(arguments: &[String]) -> Result<(), Box<dyn Error>> {
    let setting = |name, default: &str| std::env::var(name).unwrap_or(default.into());
    let cluster = Broadcaster::builder()
        .redis(setting("REDIS_URL", "redis://127.0.0.1:6379"))
        .namespace(setting("NAMESPACE", "cluster"))
        .connect()
        .await?;
    match arguments {
        [] => count(cluster.to_room("news")).await,
        [user, text] => send(cluster.to_user(user), text).await?,
        _ => return Err("two arguments are needed: a user and a text".into()),
    }
    Ok(())
}

/// A failed send is no reason to stop: the connection returns by itself.
async fn count(news: Audience) {
    let mut every = tokio::time::interval(Duration::from_secs(1));
    for number in 1_u64.. {
        every.tick().await;
        if let Err(error) = send(news.clone(), &number.to_string()).await {
            eprintln!("{error}");
        }
    }
}

async fn send(audience: Audience, text: &str) -> Result<(), SendError> {
    let delivery = audience.send(text).await?;
    println!("{} nodes took it", delivery.nodes().unwrap_or(0));
    Ok(())
}
