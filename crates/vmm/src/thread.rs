//! Threads that only move bytes and requests: with names, and with stacks of their size.

/// Plenty for loops that keep their buffers on the heap or hold a page or two.
const STACK_LEN: usize = 256 << 10;

/// Starts one; nobody waits for its end.
pub fn spawn(name: &str, serve: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    let builder = std::thread::Builder::new().name(name.to_owned()).stack_size(STACK_LEN);
    builder.spawn(serve).map(drop)
}
