//! Load for tests and benchmarks: a server that stops gracefully, clients that count every failure.
//!
//! `load serve PORT`: HTTP and a UDP echo, answered with the host's name.
//! `load requests close|keep RATE SECONDS ADDRESS:PORT`: RATE 0 is as fast as 16 connections go.
//! `load names SECONDS RATE NAME...`: questions to 127.0.0.11; RATE 0 is 32 at a time.
//! `load askers COUNT SECONDS NAME...`: as many, each of whom asks again when it has its answer.
//! `load datagrams SECONDS ADDRESS:PORT`: small ones as fast as they go; `load count PORT SECONDS`
//! prints how many a second arrive, from the first one.
//! Clients end earlier when their standard input is closed, and print one line of JSON.

mod burst;
mod datagrams;
mod names;
mod report;
mod requests;
mod serve;

use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::AsyncReadExt;

use crate::names::Pace;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["serve", port] => serve::run(port.parse()?).await,
        ["requests", mode @ ("close" | "keep"), rate, time, address] => {
            let keep = *mode == "keep";
            let report = requests::run(keep, rate.parse()?, seconds(time)?, address.parse()?).await;
            report.print()
        }
        ["names", time, rate, names @ ..] if !names.is_empty() => {
            let names = names.iter().map(|name| (*name).to_owned()).collect();
            let pace = Pace { askers: 2, under_way: 16, rate: rate.parse()? };
            names::run(seconds(time)?, pace, names).await?.print()
        }
        ["askers", count, time, names @ ..] if !names.is_empty() => {
            let names = names.iter().map(|name| (*name).to_owned()).collect();
            let pace = Pace { askers: count.parse()?, under_way: 1, rate: 0 };
            names::run(seconds(time)?, pace, names).await?.print()
        }
        ["datagrams", time, address] => {
            println!("{}", datagrams::send(seconds(time)?, address.parse()?).await?);
            // The runtime would wait for somebody to close the standard input.
            std::process::exit(0)
        }
        ["count", port, time] => {
            println!("{}", datagrams::count(port.parse()?, seconds(time)?)?);
            Ok(())
        }
        _ => bail!(
            "usage: load serve PORT | requests close|keep RATE SECONDS ADDRESS | names SECONDS RATE NAME... | askers COUNT SECONDS NAME... | datagrams SECONDS ADDRESS | count PORT SECONDS"
        ),
    }
}

fn seconds(text: &str) -> Result<Duration> {
    Ok(Duration::from_secs_f64(text.parse().context("not a number of seconds")?))
}

/// Ends with the time, or when whoever started this closes its standard input.
async fn over(time: Duration) {
    let mut nothing = [0; 64];
    let mut input = tokio::io::stdin();
    let closed = async { while input.read(&mut nothing).await.is_ok_and(|length| length > 0) {} };
    tokio::select! {
        () = closed => {}
        () = tokio::time::sleep(time) => {}
    }
}
