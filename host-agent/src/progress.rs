//! Progress bars, on a terminal only: elsewhere they would only fill logs.

use indicatif::{ProgressBar, ProgressStyle};

/// A bar that counts `unit`s; bytes are shown as KiB, MiB, ….
pub fn bar(what: &'static str, unit: Unit) -> ProgressBar {
    let counts = match unit {
        Unit::Bytes => "{bytes}/{total_bytes}".to_owned(),
        Unit::Of(unit) => format!("{{human_pos}}/{{human_len}} {unit}"),
    };
    let template = format!("{{msg:10}} {{bar:40}} {counts}  {{elapsed}} (left: {{eta}})");
    // indicatif draws nothing where standard error is no terminal.
    let bar = ProgressBar::new(0).with_message(what);
    match ProgressStyle::with_template(&template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// What is counted.
#[derive(Clone, Copy)]
pub enum Unit {
    /// Bytes.
    Bytes,
    /// Something else, in the plural.
    Of(&'static str),
}
