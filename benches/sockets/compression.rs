//! What it costs to send compressed, and what it saves: two nodes, and clients of which those of one take it.

use crate::process::{Process, median};
use crate::{RUNS, row};

const SOCKETS: usize = 10_000;
const ROUNDS: usize = 40;

/// Whose clients take compressed messages, and those of another.
fn pair(sockets: usize) -> [(Process, Process, u64); 2] {
    ["user-", "deflating-"].map(|prefix| {
        let mut server = Process::start(&["cluster", "memory"]);
        let warm_up = Process::load(&[(&server, prefix, 0..200)]);
        drop(warm_up);
        server.until("sockets", 0);
        let before = server.ask("rss");
        let load = Process::load(&[(&server, prefix, 0..sockets)]);
        server.until("sockets", sockets as u64);
        let grown = server.ask("rss") - before;
        (server, load, grown)
    })
}

/// 1 KiB of JSON to each of so many, one message at a time.
pub fn compression() {
    for (sockets, rounds) in [(SOCKETS, ROUNDS), (100, ROUNDS * 100), (1, ROUNDS * 250)] {
        let mut pair = pair(sockets);
        let ([mut cpus, mut bytes], mut costs) = ([const { Vec::new() }; 2], Vec::new());
        for _ in 0..RUNS {
            let [plain, deflated] = pair.each_mut().map(|(server, load, _)| {
                let before = load.ask("bytes");
                let cpu = server.cpu_of(&format!("json {rounds}"));
                load.until_still("bytes");
                (cpu, (load.ask("bytes") - before) as f64)
            });
            let deliveries = (sockets * rounds) as f64;
            cpus.push(deflated.0 / plain.0);
            costs.push((plain.0 / deliveries, deflated.0 / deliveries));
            bytes.push(deflated.1 / plain.1);
        }
        let plain = median(costs.iter().map(|(plain, _)| *plain).collect());
        let deflated = median(costs.iter().map(|(_, deflated)| *deflated).collect());
        let (cpu, bytes) = (median(cpus), median(bytes));
        row(
            &format!("1 KiB of JSON to each of {sockets}, compressed against plain: CPU"),
            &format!("{cpu:.2}x ({deflated:.2} µs against {plain:.2})"),
        );
        row("the same: bytes", &format!("{bytes:.3}x"));
    }
    let idle = (0..RUNS).map(|_| {
        let [(.., plain), (.., deflating)] = pair(SOCKETS);
        (plain as f64, deflating as f64)
    });
    let idle = Vec::from_iter(idle);
    let each = |of: fn(&(f64, f64)) -> f64| median(idle.iter().map(of).collect()) / SOCKETS as f64;
    let (plain, deflating) = (each(|it| it.0), each(|it| it.1));
    row(
        "RSS growth per idle socket, agreed on compression against not",
        &format!(
            "{:.2}x ({deflating:.0} B against {plain:.0})",
            deflating / plain
        ),
    );
}
