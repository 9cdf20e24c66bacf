"""From captioned images of one's own to a served composer: parse, mine, train, measure, publish."""
