# Takes messages from a queue and tells them as JSON, or puts one with headers of every kind into it.
#   ruby bunny.rb take URL QUEUE COUNT
#   ruby bunny.rb put URL QUEUE
require "bunny"
require "json"

verb, url, queue, count = ARGV
connection = Bunny.new(url, automatically_recover: false, logger: Logger.new($stderr, level: Logger::WARN))
connection.start
channel = connection.create_channel

def shown(value)
  case value
  when Hash then value.transform_values { |each| shown(each) }
  when Array then value.map { |each| shown(each) }
  when Time then { "time" => value.to_i }
  when String then value.dup.force_encoding("UTF-8").valid_encoding? ? value : { "bytes" => value.unpack("C*") }
  else value
  end
end

if verb == "take"
  taken = 0
  channel.queue(queue, passive: true).subscribe(manual_ack: true, block: false) do |info, properties, body|
    puts JSON.generate({ headers: shown(properties.headers || {}), id: properties.message_id, priority: properties.priority,
                         type: properties.type, body: body })
    $stdout.flush
    channel.ack(info.delivery_tag)
    taken += 1
  end
  200.times { break if taken == count.to_i || !connection.open?; sleep 0.1 }
else
  channel.confirm_select
  headers = { "small" => 7, "negative" => -7, "large" => 2**40, "yes" => true, "no" => false, "none" => nil,
              "text" => "žluť", "float" => 0.1, "time" => Time.at(1_767_225_600), "list" => [1, "a", { "b" => 2 }],
              "table" => { "inner" => { "n" => 300 } } }
  channel.default_exchange.publish("{}", routing_key: queue, headers: headers, message_id: "from-ruby", type: "t",
                                         app_id: "ruby", priority: 3, timestamp: 1_767_225_600)
  channel.wait_for_confirms
end
exit(connection.open? ? 0 : 1).tap { connection.close }
