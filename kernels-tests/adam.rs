use crate::suite;

#[test]
fn adam_matches_its_reference_in_every_variant() {
    suite::check_family("adam");
}
