use crate::suite;

#[test]
fn vocabulary_matches_its_reference_in_every_variant() {
    suite::check_family("vocabulary");
}

#[test]
fn vocabulary_gradients_match_central_differences() {
    suite::check_gradients("vocabulary");
}
