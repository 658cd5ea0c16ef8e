//! What strangers send, mutated by libFuzzer: FUZZ_TARGET chooses between messages, images and model packages.
//! `tests/fuzz/run` builds and runs it.

#![no_main]

mod images;
mod messages;
mod packages;

use std::panic;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;

type Target = fn(&[u8]);

fuzz_target!(|data: &[u8]| {
    static TARGET: OnceLock<Target> = OnceLock::new();
    TARGET.get_or_init(target)(data);
});

fn target() -> Target {
    match std::env::var("FUZZ_TARGET").as_deref() {
        Ok("messages") => messages::read,
        Ok("images") => {
            forgive_decoders();
            images::decode
        }
        Ok("packages") => packages::load,
        _ => panic!("FUZZ_TARGET has to be messages, images or packages"),
    }
}

/// A panic in somebody else's decoder is caught, and costs its image; one in our own code is a finding, as everywhere
/// else.
fn forgive_decoders() {
    let abort = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        let is_ours = panic.location().is_some_and(|place| !place.file().contains(".cargo/registry"));
        if is_ours {
            abort(panic);
        }
    }));
}
