//! The tables.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::referee::Referee;
use crate::tally::Occasion;

/// What one node's last life used and counted.
#[derive(Clone, Debug)]
pub struct NodeFigures {
    pub lives: usize,
    pub start_kib: u64,
    pub end_kib: u64,
    /// As the node prints them.
    pub stats: String,
}

/// Prints everything, as Markdown.
pub fn print(title: &str, referee: &Referee, nodes: &[NodeFigures]) {
    println!("{title}\n");
    print_messages(referee);
    print_faults(&referee.occasions);
    print_nodes(nodes);
    println!("Sockets ended, by code:");
    for (code, count) in &referee.endings {
        println!("- {code}: {count}");
    }
}

fn print_messages(referee: &Referee) {
    let tally = &referee.tally;
    println!("| messages, questions, limits | |\n|---|---:|");
    for (what, count) in [
        ("sends", tally.taken + tally.unsure + tally.refused),
        ("… of which failed, maybe sent", tally.unsure),
        ("… of which failed, certainly not sent", tally.refused),
        ("delivered", tally.delivered),
        ("gaps told to sockets", tally.gaps_told),
        ("not delivered, the sender had an error", tally.sender_told),
        ("lost inside announced gaps", tally.inside),
        (
            "… and by a Redis that lost it, and counted",
            tally.destroyed,
        ),
        ("**lost outside gaps**", tally.outside),
        (
            "**lost by a Redis, and counted by nobody**",
            tally.uncounted,
        ),
        ("**duplicated**", tally.duplicates),
        (
            "unions late, one of whose primaries was away",
            tally.crossed,
        ),
        ("**out of order**", tally.disorder),
        (
            "**delivered elsewhere though \"not sent\"**",
            tally.refused_arrived,
        ),
        ("**delivered to the wrong socket**", tally.strays),
        ("**fate unknown**", tally.unreported),
        ("questions answered", tally.answers),
        ("… of which said that they are not whole", tally.incomplete),
        ("… and left out a node without naming it", tally.unnamed),
        ("**wrongly complete**", tally.wrongly_complete),
        ("**online, but said to be offline**", tally.wrongly_offline),
        ("**no answer at all**", tally.unanswered),
        ("upgrades of users who want too many", tally.upgrades),
        ("… of which counted on one node only", tally.unchecked),
        ("**over the limit**", tally.over_limit),
    ] {
        println!("| {what} | {count} |");
    }
    println!();
}

fn print_faults(occasions: &[Occasion]) {
    let mut kinds: BTreeMap<&str, Vec<&Occasion>> = BTreeMap::new();
    for occasion in occasions {
        kinds.entry(occasion.name).or_default().push(occasion);
    }
    println!(
        "| fault | times | noticed after, median (max) | healed after its end, median (max) | lost inside gaps | outside | answers, not whole | … after it |"
    );
    println!("|---|---:|---:|---:|---:|---:|---:|---:|");
    for (name, occasions) in kinds {
        let noticed = occasions.iter().filter_map(|occasion| occasion.noticed);
        let healed = occasions.iter().filter_map(|occasion| occasion.healed);
        let inside: u64 = occasions.iter().map(|occasion| occasion.inside).sum();
        let outside: u64 = occasions.iter().map(|occasion| occasion.outside).sum();
        println!(
            "| {name} | {} | {} | {} | {inside} | {outside} | {} | {} |",
            occasions.len(),
            median_and_max(noticed.collect()),
            median_and_max(healed.collect()),
            answers(&occasions, 0),
            answers(&occasions, 1),
        );
    }
    println!();
}

/// How many there were, and those that were not whole.
fn answers(occasions: &[&Occasion], when: usize) -> String {
    let answers = occasions.iter().map(|occasion| occasion.answers[when]);
    let add = |(all, those): (u64, u64), (more, further)| (all + more, those + further);
    let (all, those) = answers.fold((0, 0), add);
    format!("{all}, {those}")
}

fn median_and_max(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    match times.last() {
        None => "–".into(),
        Some(max) => format!(
            "{:.2} s ({:.2} s)",
            times[times.len() / 2].as_secs_f64(),
            max.as_secs_f64()
        ),
    }
}

fn print_nodes(nodes: &[NodeFigures]) {
    println!(
        "| node | lives | memory at start, of the last life | at the end | sockets | sends | delivered | slow closed | gaps | garbage | failed publishes | refused questions | refused sockets | unchecked sockets |"
    );
    println!("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|");
    for (n, node) in nodes.iter().enumerate() {
        let mebibytes = |kib: u64| format!("{:.1} MiB", kib as f64 / 1024.0);
        println!(
            "| {n} | {} | {} | {} | {} |",
            node.lives,
            mebibytes(node.start_kib),
            mebibytes(node.end_kib),
            node.stats.replace(' ', " | ")
        );
    }
    println!();
}
