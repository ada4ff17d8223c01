"""The first snippet of Qwen3-Coder's model card, with only the import line changed.

As on the card, but for the model's name: this machine may be small. Write the card's name to run it there:
"Qwen/Qwen3-Coder-480B-A35B-Instruct".
"""

from lathe import AutoModelForCausalLM, AutoTokenizer

model_name = "smollm2"

# load the tokenizer and the model
tokenizer = AutoTokenizer.from_pretrained(model_name)
model = AutoModelForCausalLM.from_pretrained(model_name, torch_dtype="auto", device_map="auto")

# prepare the model input
prompt = "Write a quick sort algorithm."
messages = [{"role": "user", "content": prompt}]
text = tokenizer.apply_chat_template(
    messages,
    tokenize=False,
    add_generation_prompt=True,
)
model_inputs = tokenizer([text], return_tensors="pt").to(model.device)

# conduct text completion
generated_ids = model.generate(**model_inputs, max_new_tokens=512)
output_ids = generated_ids[0][len(model_inputs.input_ids[0]) :].tolist()

content = tokenizer.decode(output_ids, skip_special_tokens=True)

print("content:", content)
