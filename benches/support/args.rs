//! What every benchmark can be told.

use std::path::PathBuf;

use clap::Args;

#[derive(Args)]
pub struct Common {
    /// The tokenward that is measured, such as that of an image
    #[arg(long, default_value = env!("CARGO_BIN_EXE_tokenward"))]
    pub tokenward: PathBuf,
    /// Store the tables in benches/RESULTS.md
    #[arg(long)]
    pub write: bool,
    /// What cargo passes to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}
