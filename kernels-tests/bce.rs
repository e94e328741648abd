use crate::suite;

#[test]
fn bce_matches_its_reference_in_every_variant() {
    suite::check_family("bce");
}

#[test]
fn bce_gradients_match_central_differences() {
    suite::check_gradients("bce");
}
