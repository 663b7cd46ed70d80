// Takes messages from a queue and tells them as JSON, or puts one with headers of every kind into it.
//   node amqplib.js take URL QUEUE COUNT
//   node amqplib.js put URL QUEUE
const amqplib = require('amqplib')

const [verb, url, queue, count] = process.argv.slice(2)

async function main() {
  const connection = await amqplib.connect(url)
  connection.on('error', (error) => { console.error(String(error)); process.exit(1) })
  if (verb === 'take') {
    const channel = await connection.createChannel()
    let taken = 0
    await new Promise((done) => channel.consume(queue, (message) => {
      const { headers, messageId, priority, type } = message.properties
      console.log(JSON.stringify({ headers, id: messageId, priority, type, body: message.content.toString() }))
      channel.ack(message)
      taken += 1
      if (taken === Number(count)) done()
    }))
    await channel.close()
  } else {
    const channel = await connection.createConfirmChannel()
    const typed = (kind, value) => ({ '!': kind, value })
    const headers = {
      small: 7, negative: -7, large: 2 ** 40, yes: true, no: false, none: null, text: 'žluť', float: 0.1,
      time: typed('timestamp', 1767225600), list: [1, 'a', { b: 2 }], table: { inner: { n: 300 } },
      byte: typed('int8', -1), short: typed('int16', -300), int: typed('int32', 70000), long: typed('int64', 5),
      single: typed('float', 0.5), decimal: typed('decimal', { places: 2, digits: 995 }), bytes: Buffer.from([0, 255])
    }
    channel.sendToQueue(queue, Buffer.from('{}'), {
      headers, messageId: 'from-node', type: 't', appId: 'node', priority: 3, timestamp: 1767225600
    })
    await channel.waitForConfirms()
  }
  await connection.close()
}

main().catch((error) => { console.error(String(error)); process.exit(1) })
