//! A guest that does what it is told.

use crate::{Material, TestVm};
use anyhow::{Result, ensure};

/// Seconds a boot may take on a busy machine; well beyond what it needs.
const BOOT: u64 = 300;

/// A shell on the busybox initramfs.
pub struct Shell {
    /// The machine.
    pub vm: TestVm,
    commands: u32,
}

impl Shell {
    /// Boots it on the software CPU: `words` go to the kernel's command line, `options` to `vireo run`.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn boot(material: &Material, words: &str, options: &[&str]) -> Result<Self> {
        let mut all = vec!["--engine", "software"];
        all.extend_from_slice(options);
        let mut vm = material.boot(&format!("vireo.test=shell {words}"), &all)?;
        vm.wait_for("VIREO-INIT-OK", BOOT)?;
        // Neither an echo of what is typed nor a prompt between the lines.
        vm.wait_for("# ", 60)?;
        vm.send("stty -echo; PS1=\n")?;
        let mut shell = Shell { vm, commands: 0 };
        shell.run("true")?;
        Ok(shell)
    }

    /// What a command says.
    ///
    /// # Errors
    /// When it does not end.
    pub fn run(&mut self, command: &str) -> Result<String> {
        self.commands += 1;
        // The shell puts the mark together, so that no echo can be taken for it.
        self.vm.send(&format!("{command}\necho MARK-$(({} + 1000))\n", self.commands))?;
        let said = self.vm.wait_for(&format!("MARK-{}", self.commands + 1000), 120)?;
        Ok(said.replace('\r', ""))
    }

    /// Powers the guest off.
    ///
    /// # Errors
    /// When the machine does not end by that.
    pub fn power_off(mut self) -> Result<()> {
        self.vm.send("poweroff -f\n")?;
        let code = self.vm.wait(60)?.code;
        ensure!(code == Some(0), "the machine ended with {code:?}");
        Ok(())
    }
}
