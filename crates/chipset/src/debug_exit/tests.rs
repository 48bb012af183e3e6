use super::*;
use parking_lot::Mutex;

#[derive(Default)]
struct Printed(Mutex<Vec<u8>>);
impl SerialBackend for Printed {
    fn write(&self, bytes: &[u8]) {
        self.0.lock().extend_from_slice(bytes);
    }
}

#[test]
fn values_of_all_widths_arrive() {
    let values = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&values);
    let port = DebugExit::new(Box::new(move |value| seen.lock().push(value)));
    port.write(0, 0, &[0x10]);
    port.write(0, 0, &[0x34, 0x12]);
    port.write(0, 0, &[0x78, 0x56, 0x34, 0x12]);
    assert_eq!(*values.lock(), [0x10, 0x1234, 0x1234_5678]);
}

#[test]
fn the_console_prints_and_is_found() {
    let printed = Arc::new(Printed::default());
    let port = DebugConsole::new(printed.clone());
    port.write(0, 0, b"h");
    port.write(0, 0, b"i");
    let mut data = [0];
    port.read(0, 0, &mut data);
    assert_eq!((printed.0.lock().as_slice(), data), (&b"hi"[..], [0xe9]));
}
