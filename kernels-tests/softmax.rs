use crate::suite;

#[test]
fn softmax_matches_its_reference_in_every_variant() {
    suite::check_family("softmax");
}

#[test]
fn softmax_gradients_match_central_differences() {
    suite::check_gradients("softmax");
}
