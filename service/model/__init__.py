"""The recommender itself: vocabulary, backbone, losses and ranking metrics."""
