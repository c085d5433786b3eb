'use strict'
// Node's side of the benchmarks: carries out one job in a fresh process, with the hypercore of a given folder.
//
//   node bench.js HOME JOB        HOME holds a node_modules with hypercore; JOB is one JSON object
//
// Each answer is one JSON object a line on stdout. The jobs and their fields are those of benchmarks/jobs.py;
// both sides make the same blocks, do the same work between the two clock readings, and report the same figures.

const fs = require('fs')
const net = require('net')
const path = require('path')
const readline = require('readline')

const [home, text] = process.argv.slice(2)
const load = name => require(require.resolve(name, { paths: [path.resolve(home)] }))
const Hypercore = load('hypercore')
const SecretStream = load('@hyperswarm/secret-stream')
const job = JSON.parse(text)

const PATTERN = Buffer.alloc(65536, Buffer.from(Array.from({ length: 65536 }, (_, j) => (j * 7 + (j >> 8)) & 255)))
const RANDOM_SEED = 20240229

const say = answer => process.stdout.write(JSON.stringify(answer) + '\n')
const monotonic = () => process.hrtime.bigint()
const secondsSince = began => Number(monotonic() - began) / 1e9

function block (index, size) {
  const made = Buffer.from(PATTERN.subarray(0, size))
  made.writeUInt32LE(index, 0)
  return made
}

function blocks (start, count, size) {
  return Array.from({ length: count }, (_, i) => block(start + i, size))
}

// The order of the random reads: Park and Miller's generator, so that both sides read the same blocks.
function randomIndexes (count, length) {
  let state = RANDOM_SEED
  return Array.from({ length: count }, () => {
    state = (state * 48271) % 2147483647
    return state % length
  })
}

function usage () {
  const { user, system } = process.cpuUsage()
  return { cpu: (user + system) / 1e6 }
}

// The peak of this program's own life: what rusage says would include the size of the parent that it was forked from.
function peakMemory () {
  return parseInt(/VmHWM:\s*(\d+)/.exec(fs.readFileSync('/proc/self/status', 'latin1'))[1]) * 1024
}

function figures (began, before, more) {
  return { seconds: secondsSince(began), cpu_seconds: usage().cpu - before.cpu, peak_memory_bytes: peakMemory(), ...more }
}

async function open (folder, key) {
  const core = key ? new Hypercore(folder, Buffer.from(key, 'hex')) : new Hypercore(folder)
  await core.ready()
  return core
}

// Starts `width` calls at once, awaits them all, starts the next ones; one by one when `width` is 1.
async function inFlight (width, items, one) {
  if (width === 1) {
    for (const item of items) await one(item)
  } else {
    for (let i = 0; i < items.length; i += width) await Promise.all(items.slice(i, i + width).map(one))
  }
}

function expect (found, wanted, what) {
  if (Buffer.isBuffer(wanted) ? !wanted.equals(found) : found !== wanted) throw new Error(`${what} is wrong: ${found}, not ${wanted}`)
}

const jobs = {
  async fill ({ folder, count, size }) {
    const core = await open(folder)
    for (let i = 0; i < count; i += 1000) await core.append(blocks(i, Math.min(1000, count - i), size))
    expect(core.length, count, 'length')
    await core.close()
    say({})
  },

  async append ({ folder, count, size, in_flight_count: width }) {
    const core = await open(folder)
    const made = blocks(0, count, size)
    const before = usage()
    const began = monotonic()
    await inFlight(width, made, one => core.append(one))
    const result = figures(began, before)
    expect(core.length, count, 'length')
    await core.close()
    say(result)
  },

  async append_batches ({ folder, batches, count, size }) {
    const core = await open(folder)
    const batch = blocks(0, count, size)
    const before = usage()
    const began = monotonic()
    for (let i = 0; i < batches; i++) await core.append(batch)
    const result = figures(began, before)
    expect(core.length, batches * count, 'length')
    await core.close()
    say(result)
  },

  async get ({ folder, count, size, in_flight_count: width, random }) {
    const core = await open(folder)
    const indexes = random ? randomIndexes(count, core.length) : Array.from({ length: count }, (_, i) => i)
    const before = usage()
    const began = monotonic()
    await inFlight(width, indexes, index => core.get(index))
    const result = figures(began, before)
    expect(await core.get(indexes[0]), block(indexes[0], size), 'block')
    await core.close()
    say(result)
  },

  async reopen ({ folder, count, size }) {
    async function once () {
      const before = usage()
      const began = monotonic()
      const core = await open(folder)
      const found = await core.get(count >> 1)
      const result = figures(began, before)
      expect(core.length, count, 'length')
      expect(found, block(count >> 1, size), 'block')
      await core.close()
      return result
    }

    // Each side loads its parts at another moment, so the first opening is timed from the start of the process.
    await once()
    const fromStart = Date.now() / 1000 - Number(process.env.BENCH_STARTED_AT)
    const again = await once()
    say({ ...again, from_start_seconds: fromStart })
  },

  async serve ({ folder, count, size, interval_seconds: interval }) {
    const core = await open(folder)
    const before = usage()
    const began = monotonic()
    const server = net.createServer(socket => carry(core, false, socket))
    await new Promise(resolve => server.listen(0, '127.0.0.1', resolve))
    say({ key: core.key.toString('hex'), port: server.address().port })
    for await (const line of readline.createInterface({ input: process.stdin })) {
      if (line === 'stop') break
      for (let i = 0; i < count; i++) {
        await new Promise(resolve => setTimeout(resolve, interval * 1000))
        const made = block(i, size)
        made.writeBigUInt64LE(monotonic(), 8)
        await core.append(made)
      }
    }
    say(figures(began, before))
    process.exit(0)
  },

  async clone ({ folder, key, port, count, size }) {
    const core = await open(folder, key)
    const before = usage()
    const began = monotonic()
    dial(core, port)
    await core.update({ wait: true })
    await core.download({ start: 0, end: count }).done()
    const result = figures(began, before)
    expect(core.contiguousLength, count, 'contiguous length')
    for (const index of [0, count >> 1, count - 1]) expect(await core.get(index), block(index, size), 'block')
    say(result)
    process.exit(0)
  },

  async follow ({ folder, key, port, count }) {
    const core = await open(folder, key)
    dial(core, port)
    await core.update({ wait: true })
    say({ ready: true })
    const latencies = []
    for (let i = 0; i < count; i++) {
      const found = await core.get(i)
      latencies.push(Number(monotonic() - found.readBigUInt64LE(8)) / 1e9)
    }
    say({ latencies })
    process.exit(0)
  }
}

function dial (core, port) {
  carry(core, true, net.connect(port, '127.0.0.1'))
}

// The secret stream straight on the socket, as Hyperswarm does it; piping as in the README was measured to be no faster.
function carry (core, initiator, socket) {
  socket.setNoDelay(true)
  const stream = new SecretStream(initiator, socket)
  stream.on('error', () => {})
  core.replicate(stream)
}

jobs[job.job](job).catch(error => {
  console.error(error)
  process.exit(1)
})
