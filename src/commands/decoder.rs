//! `pixwarden decoder`: the process that decodes for another Pixwarden. Nobody calls it by hand.

use anyhow::Context;

pub(super) fn run() -> anyhow::Result<u8> {
    crate::screen::decode::child::serve().context("`decoder` is started by Pixwarden itself, on a socket")?;
    Ok(0)
}
