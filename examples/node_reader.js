// A reader in Node: prints every block of a log that any peer serves, a mirror in Python for one.
//
//   npm install hypercore
//   node node_reader.js KEY PORT [HOST]

const net = require('net')
const Hypercore = require('hypercore')

const [key, port, host = '127.0.0.1'] = process.argv.slice(2)
if (!/^[0-9a-f]{64}$/i.test(key) || !Number(port)) {
  console.error('usage: node node_reader.js KEY PORT [HOST]; KEY is 64 hex digits')
  process.exit(1)
}

async function main () {
  const core = new Hypercore(`./node-reader-storage-${key.slice(0, 8)}`, Buffer.from(key, 'hex'))
  await core.ready()
  const socket = net.connect(Number(port), host)
  socket.pipe(core.replicate(true)).pipe(socket)
  socket.on('error', (error) => { console.error(error.message); process.exit(1) })
  for await (const block of core.createReadStream({ live: true })) console.log(block.toString())
}

main()
