// outbox.publish from node-pg, with its ordinary parameters. Argument: the database's URL.
const { Client } = require('pg')

async function main() {
  const db = new Client({ connectionString: process.argv[2] })
  await db.connect()
  const publish = 'SELECT outbox.publish($1, $2, $3)'
  await db.query(publish, ['js', 'str', JSON.stringify({ a: 'C:\\new', b: 'é' })])
  await db.query(publish, ['js', 'object', { a: 'C:\\new' }])
  await db.query('SELECT outbox.publish($1, $2, $3::bytea)', ['js', 'buffer', Buffer.from([0, 255, 92, 120])])
  const { rows } = await db.query(
    'SELECT outbox.publish($1, $2, $3, headers => $4, content_type => $5, priority => $6, expiration => $7, id => $8, app_id => $9) AS id',
    ['js', 'all', 'plain', { n: 1 }, 'text/plain', 5, 60000, '00000000-0000-0000-0000-000000000007', null]
  )
  if (rows[0].id !== '00000000-0000-0000-0000-000000000007') throw new Error(`got ${rows[0].id}`)
  await db.end()
}

main().catch((error) => {
  console.error(error)
  process.exit(1)
})
