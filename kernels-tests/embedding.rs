use crate::suite;

#[test]
fn embedding_matches_its_reference_in_every_variant() {
    suite::check_family("embedding");
}

#[test]
fn embedding_gradients_match_central_differences() {
    suite::check_gradients("embedding");
}
