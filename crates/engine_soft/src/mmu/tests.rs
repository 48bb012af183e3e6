//! Tests of paging and of the TLB.
