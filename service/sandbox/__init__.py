"""A local Apache Kafka and the demo's data, for demos and tests; the product never imports it."""
