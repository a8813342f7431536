-- Which programs a migration leaves able to work.
--
-- A program refuses an outbox with migrations that it does not know, unless each of them says here that a program of its version
-- works all the same: so an older relay can restart while the newer ones are rolled out, and the program can be rolled back.

ALTER TABLE outbox.postrider_migrations ADD COLUMN compatible_from integer;

COMMENT ON COLUMN outbox.postrider_migrations.compatible_from IS
    'The oldest version whose programs work on the outbox as this migration leaves it. Null: none that does not know this migration.';
