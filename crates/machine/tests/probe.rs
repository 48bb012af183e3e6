//! The probe of KVM, tried on an engine that is compared with silicon by itself.

use engine_soft::SoftEngine;
use std::sync::Arc;

#[test]
fn a_sound_engine_passes_all_that_kvm_is_tried_with() {
    let checks = engine_kvm::probe::try_on(Arc::new(SoftEngine::new()));
    assert!(checks.len() > 25, "{checks:?}");
    for check in checks {
        assert!(check.ok, "{}: {}", check.name, check.detail);
    }
}
