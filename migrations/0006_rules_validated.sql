-- What was there when the rules became a function obeys it too. In a transaction of its own: producers and relays go on meanwhile.

ALTER TABLE outbox.messages VALIDATE CONSTRAINT is_publishable;
ALTER TABLE outbox.deferred VALIDATE CONSTRAINT is_publishable;
