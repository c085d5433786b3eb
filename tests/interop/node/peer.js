'use strict'
// Node's own hypercore as a counterpart: for interoperability tests and side-by-side benchmarks.
//
//   node peer.js MODE --major 10|11 [--storage DIR] [OPTION VALUE]...
//
//   serve    open the core in DIR (made if need be) and listen on 127.0.0.1
//   fetch    open a clone in DIR, dial --port, download all, and follow
//   folder   open nothing; commands open folders one after the other (for turn-taking on one folder)
//
// Options, as flags here and as members of the `open`, `listen` and `dial` commands:
//   key HEX, seed HEX (of the key pair), compat true|false, manifest JSON, core NAME (default "main"),
//   port N, initiator true|false (who starts the handshake; the dialer unless told otherwise),
//   count N and size N (serve: blocks to append first)
//
// Then commands on stdin, one JSON object a line: {"id": 1, "command": "append", "text": "hello"}. Each is answered
// by one line, {"id": 1, ...} or {"id": 1, "error": "...", "code": "..."}, when it is done; several may run at once.
// What happens by itself is a line with "event". The end of stdin ends the process. See `commands` for all of them.

const net = require('net')
const path = require('path')
const readline = require('readline')
const { createHash } = require('crypto')

const flags = parseFlags(process.argv.slice(2))
const major = Number(flags.major)
const home = path.join(__dirname, `hypercore${major}`)
const load = name => require(require.resolve(name, { paths: [home] }))
const Hypercore = load('hypercore')
const { keyPair } = load('hypercore-crypto')

/** Blocks a batch; and the ramp that blocks are filled from. */
const FILL_BATCH = 1000
const FILL_BATCH_BYTES = 8 * 1024 * 1024
const RAMP = Buffer.from(Array.from({ length: 512 }, (_, i) => i & 255))

const cores = new Map() // name -> core
const links = new Set() // { socket, stream }
const servers = new Set()
let store = null // the corestore that cores are opened in, after the command `store`

function parseFlags (argv) {
  const parsed = { mode: argv[0] }
  for (let i = 1; i < argv.length; i += 2) parsed[argv[i].replace(/^--/, '')] = argv[i + 1]
  return parsed
}

const say = message => process.stdout.write(JSON.stringify(message) + '\n')
const hex = bytes => (bytes ? Buffer.from(bytes).toString('hex') : null)
const bytes = text => (text === undefined || text === null ? undefined : Buffer.from(text, 'hex'))
const truth = value => value === true || value === 'true'

function coreOf ({ core = 'main' }) {
  if (!cores.has(core)) throw new Error(`no core ${core} is open`)
  return cores.get(core)
}

/** Block `index` of `size` bytes: byte j is (index + j) mod 256, and the first four are the index, little-endian. */
function filledBlock (index, size) {
  const block = Buffer.alloc(size, RAMP.subarray(index & 255, (index & 255) + 256))
  if (size >= 4) block.writeUInt32LE(index)
  return block
}

async function fill (core, count, size) {
  const most = Math.max(1, Math.min(FILL_BATCH, Math.floor(FILL_BATCH_BYTES / Math.max(1, size))))
  for (let done = 0; done < count; done += most) {
    const first = core.length
    const batch = Array.from({ length: Math.min(most, count - done) }, (_, i) => filledBlock(first + i, size))
    await core.append(batch)
  }
}

async function describe (core) {
  await core.ready()
  const { key, discoveryKey, length, byteLength, fork, contiguousLength, writable } = core
  // Hypercore 11 would go and fetch the last block for the hash, which is no way to ask what is here; and while a
  // truncation is under way there is none.
  const known = length === 0 || major === 10 || await core.has(length - 1)
  const treeHash = known ? await core.treeHash(length).catch(() => null) : null
  return {
    key: hex(key),
    discoveryKey: hex(discoveryKey),
    length,
    byteLength,
    fork,
    contiguousLength,
    writable,
    peers: core.peers.length,
    treeHash: hex(treeHash)
  }
}

/** Until `holds()`, asked again whenever the core changed. */
function until (core, holds) {
  const events = ['append', 'truncate', 'download', 'peer-add', 'peer-remove', 'clear']
  return new Promise((resolve, reject) => {
    const check = () => {
      if (!holds()) return
      for (const event of events) core.off(event, check)
      core.off('close', gone)
      resolve()
    }
    const gone = () => reject(new Error('the core was closed'))
    for (const event of events) core.on(event, check)
    core.on('close', gone)
    check()
  })
}

function link (socket, initiator) {
  socket.setNoDelay(true)
  const stream = Hypercore.createProtocolStream(initiator, { keepAlive: true })
  const joined = { socket, stream }
  links.add(joined)
  if (store) store.replicate(stream)
  else for (const core of cores.values()) core.replicate(stream)
  // The muxer destroys the stream it was given; its error tells why, the socket's only that.
  stream.noiseStream.on('error', error => say({ event: 'stream-error', message: error.message, code: error.code }))
  stream.on('error', () => socket.destroy())
  socket.on('error', error => say({ event: 'socket-error', message: error.message, code: error.code }))
  socket.on('close', () => {
    links.delete(joined)
    stream.destroy()
    say({ event: 'disconnected' })
  })
  socket.pipe(stream).pipe(socket)
  return stream
}

const commands = {
  /** Open a corestore; from here on `open` opens in it, by `key` or by the core's name. */
  async store ({ storage }) {
    const Corestore = load('corestore')
    store = new Corestore(storage)
    await store.ready()
    return {}
  },

  /** Open a core; `create` false refuses to make one. */
  async open ({ core: name = 'main', storage, key, seed, compat, manifest, create = true, overwrite = false }) {
    if (cores.has(name)) throw new Error(`core ${name} is open already`)
    if (store) {
      cores.set(name, store.get(key ? { key: bytes(key) } : { name }))
      return describe(coreOf({ core: name }))
    }
    const options = { createIfMissing: truth(create), overwrite: truth(overwrite) }
    if (seed) options.keyPair = keyPair(bytes(seed))
    if (manifest) options.manifest = readManifest(manifest)
    // Hypercore 10 makes compat cores unless told otherwise; a clone learns from its peers what its key means.
    if (compat !== undefined) options.compat = truth(compat)
    else if (!key) options.compat = false
    const core = key ? new Hypercore(storage, bytes(key), options) : new Hypercore(storage, options)
    core.on('truncate', (length, fork) => say({ event: 'truncate', core: name, length, fork }))
    core.on('conflict', length => say({ event: 'conflict', core: name, length }))
    core.on('close', () => { if (cores.get(name) === core) cores.delete(name) }) // after a conflict, by itself
    await core.ready()
    cores.set(name, core)
    for (const { stream } of links) core.replicate(stream)
    return describe(core)
  },

  async close ({ core: name = 'main' }) {
    const core = coreOf({ core: name })
    cores.delete(name)
    await core.close()
    return {}
  },

  async listen ({ port = 0, initiator = false }) {
    const server = net.createServer(socket => {
      link(socket, truth(initiator))
      say({ event: 'connected', port: socket.remotePort })
    })
    await new Promise((resolve, reject) => {
      server.once('error', reject)
      server.listen(Number(port), '127.0.0.1', resolve)
    })
    servers.add(server)
    return { port: server.address().port }
  },

  /** Answers when the handshake is done. `peers` tells when the other side has opened a core, too. */
  async dial ({ port, host = '127.0.0.1', initiator = true }) {
    const socket = net.connect(Number(port), host)
    await new Promise((resolve, reject) => {
      socket.once('error', reject)
      socket.once('connect', () => {
        socket.off('error', reject)
        resolve()
      })
    })
    const stream = link(socket, truth(initiator))
    if (!await stream.noiseStream.opened) throw new Error('the handshake failed')
    return { remotePublicKey: hex(stream.noiseStream.remotePublicKey) }
  },

  /** Break every connection, or end it in order. */
  async disconnect ({ gracefully = false }) {
    const ended = []
    for (const { socket, stream } of links) {
      ended.push(new Promise(resolve => socket.once('close', resolve)))
      if (gracefully) stream.end()
      else socket.destroy()
    }
    await Promise.all(ended)
    return { count: ended.length }
  },

  /**
   * `text`, `hex`, `blocks` (a batch, each hex), or `count` blocks of `size` bytes. With `blocks` may come a
   * `signature` (hex) made elsewhere, for cores that need several signers.
   */
  async append ({ core, text, hex: data, blocks, signature, count, size }) {
    const target = coreOf({ core })
    if (count !== undefined) await fill(target, count, size)
    else if (blocks !== undefined) await target.append(blocks.map(bytes), signature ? { signature: bytes(signature) } : {})
    else await target.append(data === undefined ? Buffer.from(text) : bytes(data))
    return describe(target)
  },

  async truncate ({ core, length, fork }) {
    const target = coreOf({ core })
    await target.truncate(length, fork === undefined ? {} : { fork })
    return describe(target)
  },

  async clear ({ core, start, end = start + 1 }) {
    const target = coreOf({ core })
    await target.clear(start, end)
    return describe(target)
  },

  /** Set the `value` (hex) of a key, or remove the key with null, or tell its value. */
  async userdata ({ core, key, value }) {
    const target = coreOf({ core })
    if (value !== undefined) await target.setUserData(key, value === null ? null : bytes(value))
    return { value: hex(await target.getUserData(key)) }
  },

  /** Waits for peers, at most `timeout` milliseconds; 0 is for ever, and `wait` false asks nobody. */
  async get ({ core, index, timeout = 10000, wait = true }) {
    return { hex: hex(await coreOf({ core }).get(index, { timeout, wait })) }
  },

  async has ({ core, start, end = start + 1 }) {
    return { has: await coreOf({ core }).has(start, end) }
  },

  /** How many blocks of a range are here. */
  async held ({ core, start = 0, end }) {
    const target = coreOf({ core })
    let count = 0
    for (let index = start; index < (end === undefined ? target.length : end); index++) {
      if (await target.has(index)) count++
    }
    return { count }
  },

  async seek ({ core, offset }) {
    const found = await coreOf({ core }).seek(offset)
    return { index: found[0], offset: found[1] }
  },

  /** Ask the peers for news. */
  async update ({ core }) {
    const target = coreOf({ core })
    const updated = await target.update({ wait: true })
    return { updated, ...await describe(target) }
  },

  /** Download a range, all that there is now by default; tells how long it took and what it was. */
  async download ({ core, start = 0, end, linear = false, check = true }) {
    const target = coreOf({ core })
    if (end === undefined) end = target.length
    const began = process.hrtime.bigint()
    await target.download({ start, end, linear }).done()
    const seconds = Number(process.hrtime.bigint() - began) / 1e9
    return { blocks: end - start, seconds, ...(check ? await commands.digest({ core, start, end }) : {}) }
  },

  /** Of the bytes of a range that is here. */
  async digest ({ core, start = 0, end }) {
    const target = coreOf({ core })
    const sha256 = createHash('sha256')
    let byteLength = 0
    if (end === undefined) end = target.length
    for (let index = start; index < end; index++) {
      const block = await target.get(index, { wait: false })
      if (block === null) throw new Error(`block ${index} is not here`)
      byteLength += block.byteLength
      sha256.update(block)
    }
    return { byteLength, sha256: sha256.digest('hex') }
  },

  /** Follow from `start` (now): one event a block, for ever or for `count` blocks. */
  async tail ({ core: name = 'main', start, count = Infinity }) {
    const core = coreOf({ core: name })
    let index = start === undefined ? core.length : start
    const end = index + (count === null ? Infinity : count)
    const follow = async () => {
      for await (const block of core.createReadStream({ start: index, live: true })) {
        say({ event: 'block', core: name, index, hex: hex(block), at: Date.now() })
        if (++index >= end) break
      }
    }
    follow().catch(error => say({ event: 'tail-error', core: name, message: error.message }))
    return { start: index }
  },

  /** Until the core is at least so long, at this fork, contiguous so far, or has so many peers. */
  async wait ({ core, length = 0, fork, contiguous = 0, peers = 0 }) {
    const target = coreOf({ core })
    await until(target, () =>
      target.length >= length && (fork === undefined || target.fork === fork) &&
      target.contiguousLength >= contiguous && target.peers.length >= peers)
    return describe(target)
  },

  async info ({ core }) {
    return describe(coreOf({ core }))
  },

  /** Hypercore 10: all that can be seen of a core without asking anybody; `blocks` are SHA-256, null where missing. */
  async view ({ core }) {
    const target = coreOf({ core })
    const blocks = []
    for (let index = 0; index < target.length; index++) {
      const block = await target.has(index) ? await target.get(index, { wait: false }) : null
      blocks.push(block && createHash('sha256').update(block).digest('hex'))
    }
    const userData = target.core.header.userData.map(({ key, value }) => [key, hex(value)])
    return { ...await describe(target), signature: hex(target.core.tree.signature), userData, blocks }
  },

  async treeHash ({ core, length }) {
    return { treeHash: hex(await coreOf({ core }).treeHash(length)) }
  },

  /** What the core itself finds wrong with its storage; it repairs that, too. */
  async audit ({ core }) {
    return { corrections: await coreOf({ core }).core.audit() }
  },

  /** Register an extension, whose messages become events; with `message` (hex), send one to every peer. */
  async extension ({ core: name = 'main', name: extension, message }) {
    const core = coreOf({ core: name })
    core.extensionsHere = core.extensionsHere || new Map()
    if (!core.extensionsHere.has(extension)) {
      const onmessage = data => say({ event: 'extension', core: name, name: extension, hex: hex(data) })
      core.extensionsHere.set(extension, core.registerExtension(extension, { encoding: 'binary', onmessage }))
    }
    if (message !== undefined) core.extensionsHere.get(extension).broadcast(bytes(message))
    return {}
  },

  /** What this process has cost so far. */
  async usage () {
    const { userCPUTime, systemCPUTime, maxRSS } = process.resourceUsage()
    return { cpuSeconds: (userCPUTime + systemCPUTime) / 1e6, peakBytes: maxRSS * 1024 }
  }
}

/** A manifest with hex for bytes: {"quorum": 1, "signers": [{"publicKey": "..", "namespace": ".."}], ...}. */
function readManifest (manifest) {
  const parsed = typeof manifest === 'string' ? JSON.parse(manifest) : manifest
  const signers = parsed.signers.map(({ publicKey, namespace }) => ({
    publicKey: bytes(publicKey),
    ...(namespace ? { namespace: bytes(namespace) } : {})
  }))
  return { ...parsed, signers }
}

async function run (line) {
  let request
  try {
    request = JSON.parse(line)
  } catch (error) {
    return say({ event: 'bad-command', message: error.message })
  }
  const { id, command, ...parameters } = request
  try {
    if (!Object.hasOwn(commands, command)) throw new Error(`there is no command ${command}`)
    say({ id, ...await commands[command](parameters) })
  } catch (error) {
    say({ id, error: error.message, code: error.code })
  }
}

async function start () {
  const ready = { event: 'ready', mode: flags.mode, major, version: load('hypercore/package.json').version }
  if (flags.storage) Object.assign(ready, await commands.open(flags))
  if (flags.mode === 'serve') {
    if (flags.count) await fill(coreOf({}), Number(flags.count), Number(flags.size))
    Object.assign(ready, await describe(coreOf({})), await commands.listen(flags))
  }
  if (flags.mode === 'fetch') {
    const began = process.hrtime.bigint()
    await commands.dial(flags)
    await commands.wait({ peers: 1 })
    await commands.update({})
    Object.assign(ready, await commands.download({}), await describe(coreOf({})))
    ready.seconds = Number(process.hrtime.bigint() - began) / 1e9
    await commands.tail({})
  }
  say(ready)
  const input = readline.createInterface({ input: process.stdin, terminal: false })
  input.on('line', run)
  input.on('close', stop)
}

async function stop () {
  for (const server of servers) server.close()
  for (const { socket } of links) socket.destroy()
  for (const core of cores.values()) await core.close()
  if (store) await store.close()
  process.exit(0)
}

if (!['serve', 'fetch', 'folder'].includes(flags.mode) || ![10, 11].includes(major)) {
  process.stderr.write('usage: node peer.js serve|fetch|folder --major 10|11 [--storage DIR] ... (see its first lines)\n')
  process.exit(2)
}
process.on('uncaughtException', error => {
  say({ event: 'crash', message: error.message, stack: error.stack })
  process.exit(1)
})
start().catch(error => {
  say({ event: 'crash', message: error.message, code: error.code, stack: error.stack })
  process.exit(1)
})
